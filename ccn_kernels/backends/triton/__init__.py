"""The fused Triton kernels. Triton itself is imported when a call first needs it."""

from __future__ import annotations

import functools
import importlib.metadata
import os
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...spec import ConvSpec

if TYPE_CHECKING:
    from .tiles import Device

NAME = "triton"
OLDEST = (3, 6)
OLDEST_GPU = 75  # compute capability 7.5: the oldest that the kernels are compiled for


@functools.cache  # as Triton does, which looks once, at its import
def interpreting() -> bool:
    """Whether Triton interprets kernels, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def unavailable() -> str | None:
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "triton is not installed: pip install 'ccn-kernels[triton]'"
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        return f"it needs triton >= {'.'.join(map(str, OLDEST))}, found {version}"
    if interpreting():
        return None
    if torch.version.hip is not None:
        return "its kernels are written for NVIDIA GPUs, and this PyTorch is built for ROCm"
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA GPU here (TRITON_INTERPRET=1 runs the kernels on CPU tensors)"
    return None


def unsupported(request) -> str | None:
    wanted = "cpu" if interpreting() else "cuda"
    if request.device != wanted:
        under = " under TRITON_INTERPRET=1" if interpreting() else ""
        return f"it runs on {wanted.upper()} tensors{under}, and input is on {request.device}"
    if request.dtype == torch.float64:
        return "it computes in fp32 at most, and input is float64"
    if interpreting():
        return "Triton's interpreter multiplies bfloat16 wrongly" if request.dtype == torch.bfloat16 else None
    capability = device(None).capability
    if capability < OLDEST_GPU:
        return f"it needs compute capability 7.5, this GPU has {capability / 10}"
    if request.dtype == torch.bfloat16 and capability < 80:
        return f"bfloat16 needs compute capability 8.0, this GPU has {capability / 10}"
    return None


@functools.cache
def device(index: int | None) -> Device:
    """What kernels are chosen for: a GPU by its index (None: the current one), or the interpreter."""
    from .tiles import Device

    if interpreting():
        return Device("interpreter", 90, 1, is_interpreter=True)
    properties = torch.cuda.get_device_properties(index)
    capability = 10 * properties.major + properties.minor
    return Device(properties.name, capability, properties.multi_processor_count)


def _on(input: Tensor) -> AbstractContextManager:
    """Makes the input's GPU the current one, which is where Triton launches."""
    elsewhere = input.is_cuda and input.device.index != torch.cuda.current_device()
    return torch.cuda.device(input.device) if elsewhere else nullcontext()


@functools.cache
def _replay() -> ModuleType:
    """What runs passes; an import statement in each call would take as long as an allocation."""
    from . import replay

    return replay


def forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, spec: ConvSpec, save_quotient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, quotient and norm."""
    with _on(input):
        return _replay().forward((input, weight, bias, alpha), spec, save_quotient, device(input.device.index))


def backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    output: Tensor | None,
    quotient: Tensor | None,
    norm: Tensor,
    spec: ConvSpec,
    mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of input, weight, alpha and bias."""
    others = (bias, alpha, output, quotient, norm)
    with _on(input):
        chosen = device(input.device.index)
        return _replay().backward(grad, input, weight, others, spec, mask, chosen)
