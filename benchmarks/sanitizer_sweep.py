"""Forward and backward once through every kernel, over small shapes: what compute-sanitizer watches.

Each result is compared with the two-branch module in fp32; the last line says whether all were right. Where Triton
interprets its kernels (TRITON_INTERPRET=1) the sweep runs on a CPU.
"""

from __future__ import annotations

import dataclasses
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu_parts.checks import DONE

from ccn_kernels import reference
from ccn_kernels.backends import triton as backend
from ccn_kernels.backends.triton.backward_pass import Backward
from ccn_kernels.backends.triton.config import HYBRID, Tile
from ccn_kernels.backends.triton.forward_pass import Forward
from ccn_kernels.backends.triton.launch import Problem
from ccn_kernels.bench.case import LIMITS, exact_products, incoming_gradient, relative_error
from ccn_kernels.spec import ConvSpec

INTERPRETED = backend.interpreting()
DEVICE = "cpu" if INTERPRETED else "cuda"
NARROW = torch.float16 if INTERPRETED else torch.bfloat16  # the interpreter multiplies bfloat16 wrongly
HYBRID_DTYPE = torch.float32 if INTERPRETED else torch.bfloat16  # whose product must not overflow
ALPHA, DELTA = 1.5, 0.01

BOXES = Tile("descriptor", 64, 16, 16, 4, 2)
WIDE = Tile("descriptor", 128, 128, 64, 8, 4)
POINTERS = Tile("gather", 32, 16, 16, 4, 2)


class Call(NamedTuple):
    name: str
    forward: Tile
    dgrad: Tile = HYBRID
    wgrad: Tile = HYBRID
    channels: tuple[int, int] = (24, 40)
    size: tuple[int, int] = (6, 7)
    batch: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    relu: bool = False
    dtype: torch.dtype = NARROW


def with_squares(squares: str) -> Tile:
    return dataclasses.replace(BOXES, squares=squares)


def split(tile: Tile) -> Tile:
    return dataclasses.replace(tile, splits=3)


def places_first(tile: Tile) -> Tile:
    return dataclasses.replace(tile, places_first=True)


CALLS = (
    *(Call(f"descriptor, {way}", with_squares(way), BOXES, BOXES) for way in ("loop", "rows", "images", "plane")),
    Call("descriptor, split", split(BOXES), BOXES, split(BOXES)),
    Call("descriptor, split, images", split(with_squares("images")), BOXES, split(BOXES), relu=True),
    Call("descriptor, places first", places_first(BOXES), places_first(BOXES), BOXES, relu=True),
    Call("descriptor, strided", BOXES, HYBRID, BOXES, (32, 24), (8, 6), stride=2),
    Call("descriptor, groups", BOXES, BOXES, BOXES, (32, 64), groups=2),
    Call("descriptor, dilated", BOXES, BOXES, BOXES, dilation=2),
    Call("descriptor, 8 warps", WIDE, WIDE, dataclasses.replace(WIDE, places=64), (128, 128), (8, 8), 4),
    Call("descriptor, fp16", BOXES, BOXES, BOXES, dtype=torch.float16),
    Call("gather", POINTERS, POINTERS, POINTERS, (5, 7)),
    Call("gather, split", split(POINTERS), POINTERS, split(POINTERS), (16, 24), stride=2, groups=2),
    Call("gather, plane", dataclasses.replace(POINTERS, squares="plane"), POINTERS, POINTERS, (5, 7), relu=True),
    Call("depthwise", Tile("depthwise", 64, 64, warps=4, stages=1), POINTERS, POINTERS, (12, 24), groups=12),
    Call("hybrid", HYBRID, dtype=HYBRID_DTYPE),
    Call("hybrid, relu", HYBRID, stride=2, relu=True, dtype=HYBRID_DTYPE),
)


def main() -> None:
    torch.backends.cudnn.benchmark = False
    wrong = [call.name for call in CALLS if not runs_right(call)]
    if wrong:
        sys.exit(f"sweep: wrong: {'; '.join(wrong)}")
    print(DONE, flush=True)


def runs_right(call: Call) -> bool:
    try:
        return is_right(call)
    except Exception:  # the others are still worth a look
        traceback.print_exc()
        return False


def is_right(call: Call) -> bool:
    """Runs a call; whether all its results are finite and near the reference's."""
    torch.manual_seed(0)
    spec = ConvSpec((call.stride,) * 2, (call.dilation,) * 2, (call.dilation,) * 2, call.groups, DELTA, call.relu)
    operands = make_operands(call)
    with exact_products():
        grad, expected = exact(operands, spec, call.dtype)
    results = ours(call, spec, operands, grad)
    errors = {name: relative_error(results[name], want) for name, want in expected.items()}
    limit = LIMITS["tf32" if call.dtype == torch.float32 else str(call.dtype).removeprefix("torch.")]
    wrong = [name for name, error in errors.items() if not error < limit]
    shown = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    print(f"{call.name} {call.dtype}: {shown}{' WRONG: ' + ', '.join(wrong) if wrong else ''}", flush=True)
    return not wrong


def make_operands(call: Call) -> dict[str, torch.Tensor]:
    (channels, outputs), last = call.channels, torch.channels_last
    x = torch.randn(call.batch, channels, *call.size, device=DEVICE).to(call.dtype, memory_format=last)
    weight = torch.randn(outputs, channels // call.groups, 3, 3, device=DEVICE).to(call.dtype, memory_format=last)
    bias = torch.randn(outputs, device=DEVICE).to(call.dtype)
    return {"input": x, "weight": weight, "bias": bias, "alpha": torch.tensor(ALPHA, device=DEVICE, dtype=call.dtype)}


def exact(
    operands: dict[str, torch.Tensor], spec: ConvSpec, dtype: torch.dtype
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """An incoming gradient, and the output and the gradients of the two-branch module in fp32."""
    leaves = [operand.detach().float().requires_grad_() for operand in operands.values()]
    before = reference.compact_conv(*leaves, spec._replace(relu=False))
    grad = incoming_gradient(before.detach(), dtype, spec.relu)
    output = before.relu() if spec.relu else before
    gradients = torch.autograd.grad(output, leaves, grad.float())
    return grad, {"output": output.detach(), **dict(zip(operands, gradients, strict=True))}


def ours(call: Call, spec: ConvSpec, operands: dict[str, torch.Tensor], grad: torch.Tensor) -> dict[str, torch.Tensor]:
    x, weight, bias, alpha = operands.values()
    tiles = {"forward": call.forward, "dgrad": call.dgrad, "wgrad": call.wgrad}
    device = backend.device(x.device.index)
    output, quotient, norm = Forward(Problem(x, weight, spec, device, tiles=tiles), bias, alpha, not call.relu).run()
    saved = (output, None) if call.relu else (None, quotient)
    problem = Problem(x, weight, spec, device, tiles=tiles)
    d_input, d_weight, d_alpha, d_bias = Backward(problem, grad, bias, alpha, *saved, norm, [True] * 4).run()
    return {"output": output, "input": d_input, "weight": d_weight, "bias": d_bias, "alpha": d_alpha}


if __name__ == "__main__":
    main()
