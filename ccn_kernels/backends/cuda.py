"""The CUDA C++ backend, csrc/cuda: cuDNN's convolutions with fused passes around them."""

from __future__ import annotations

import torch

from . import extension
from .extension import backward, forward

__all__ = ["NAME", "backward", "forward", "unavailable", "unsupported"]

NAME = "cuda"


def unavailable() -> str | None:
    reason = extension.missing("cuda")
    if reason is None and not torch.cuda.is_available():
        return "it is built, but PyTorch sees no CUDA GPU here"
    return reason


def unsupported(request) -> str | None:
    return None if request.device == "cuda" else f"it runs on CUDA tensors, and input is on {request.device}"
