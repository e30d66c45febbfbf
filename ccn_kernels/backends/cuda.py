"""The CUDA C++ backend, csrc/cuda: single-pass kernels that need neither Triton nor cuDNN."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..spec import fp32_precision
from . import extension

NAME = "cuda"
OPERATORS = extension.OPERATORS  # tests emulate the kernels under another name
OLDEST_GPU = (8, 0)  # asynchronous copies, and products of bfloat16 and TF32


def unavailable() -> str | None:
    reason = extension.missing("cuda")
    if reason is None and torch.version.hip is not None:
        return "its kernels are written for NVIDIA GPUs, and this PyTorch is built for ROCm"
    if reason is None and not torch.cuda.is_available():
        return "it is built, but PyTorch sees no CUDA GPU here"
    return reason


def unsupported(request) -> str | None:
    if request.device != "cuda":
        return f"it runs on CUDA tensors, and input is on {request.device}"
    capability = _oldest_capability()
    if capability < OLDEST_GPU:
        return f"it needs compute capability 8.0, this GPU has {capability[0]}.{capability[1]}"
    return None


@functools.cache
def _oldest_capability() -> tuple[int, int]:
    """Of all GPUs: a call is not told which one it is for."""
    return min(torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count()))


def forward(*call: Any) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`extension.forward`, in TF32 where PyTorch's setting allows it."""
    return _run(extension.forward, call)


def backward(*call: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`extension.backward`, likewise."""
    return _run(extension.backward, call)


def _run(operator: Callable[..., Any], call: tuple[Any, ...]) -> Any:
    *_, spec, _ = call
    try:
        return operator(*call, tf32=fp32_precision(spec) == "tf32", operators=OPERATORS)
    except RuntimeError as error:  # the stable ABI knows no other type; before PyTorch 2.13, no reason either
        if "out of memory" not in str(error):
            raise
        raise torch.OutOfMemoryError(str(error)) from None
