"""Small calls of a backend, each compared with the two-branch module in fp64, which a CPU computes: no kernel but the
backend's and PyTorch's plain ones is in a sanitizer's way.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ccn_kernels import reference
from ccn_kernels.bench import case
from ccn_kernels.bench.case import Named, incoming_gradient, precision, relative_error
from ccn_kernels.spec import ConvSpec

ALPHA, DELTA = 1.5, 0.01
GRADIENTS = ("input", "weight", "alpha", "bias")  # as backends order them
LIMITS = {**case.LIMITS, "float64": 1e-12}


class Call(NamedTuple):
    """``wanted``: of the gradients. ``tiles``: Triton's."""

    name: str
    channels: tuple[int, int] = (24, 40)
    size: tuple[int, ...] = (6, 7)
    batch: int = 3
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    relu: bool = False
    channels_last: bool = True
    dtype: torch.dtype = torch.float32
    tf32: bool = False
    wanted: tuple[str, ...] = GRADIENTS
    tiles: Mapping[str, Any] = {}

    @property
    def precision(self) -> str:
        return "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")

    @property
    def spec(self) -> ConvSpec:
        rank = len(self.size)
        stride, dilation, padding = (
            (value,) * rank for value in (self.stride, self.dilation, self.kernel // 2 * self.dilation)
        )
        return ConvSpec(stride, padding, dilation, self.groups, DELTA, self.relu)


Compute = Callable[[Call, Named, Tensor], Named]  # of operands and an incoming gradient: the output and all gradients


def wrong_of(calls: Iterable[Call], compute: Compute, device: str) -> list[str]:
    """Names of the calls that are wrong, or do not run."""
    return [f"{call.name} {call.precision}" for call in calls if not runs_right(call, compute, device)]


def runs_right(call: Call, compute: Compute, device: str) -> bool:
    try:
        return is_right(call, compute, device)
    except Exception:  # the others are still worth a look
        traceback.print_exc()
        return False


def is_right(call: Call, compute: Compute, device: str) -> bool:
    """Runs a call; whether all its results are finite and near the reference's."""
    torch.manual_seed(0)
    operands = make_operands(call)
    grad, expected = exact(operands, call)
    with precision(call.precision):
        there = {name: operand.to(device) for name, operand in operands.items()}
        results = compute(call, there, grad.to(device))
    errors = {name: relative_error(results[name].cpu(), expected[name]) for name in ("output", *call.wanted)}
    wrong = [name for name, error in errors.items() if not error < LIMITS[call.precision]]
    shown = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    print(f"{call.name} {call.precision}: {shown}{' WRONG: ' + ', '.join(wrong) if wrong else ''}", flush=True)
    return not wrong


def make_operands(call: Call) -> Named:
    channels, outputs = call.channels
    kernel = (call.kernel,) * len(call.size)
    tensors = {
        "input": torch.randn(call.batch, channels, *call.size),
        "weight": torch.randn(outputs, channels // call.groups, *kernel),
        "bias": torch.randn(outputs),
        "alpha": torch.tensor(ALPHA),
    }
    return {name: laid_out(tensor, call) for name, tensor in tensors.items()}


def laid_out(tensor: Tensor, call: Call) -> Tensor:
    last = call.channels_last and tensor.dim() == 4
    return tensor.to(call.dtype, memory_format=torch.channels_last if last else torch.contiguous_format)


def exact(operands: Named, call: Call) -> tuple[Tensor, Named]:
    """An incoming gradient, and the output and the gradients of the two-branch module in fp64."""
    leaves = {name: operand.double().requires_grad_() for name, operand in operands.items()}
    before = reference.compact_conv(*leaves.values(), call.spec._replace(relu=False))
    grad = incoming_gradient(before.detach(), call.dtype, call.relu)
    output = before.relu() if call.relu else before
    gradients = torch.autograd.grad(output, list(leaves.values()), grad.double())
    return grad, {"output": output.detach(), **dict(zip(leaves, gradients, strict=True))}
