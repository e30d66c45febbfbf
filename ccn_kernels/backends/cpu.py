"""The C++ CPU backend, csrc/cpu."""

from __future__ import annotations

from . import extension
from .extension import backward, forward

__all__ = ["NAME", "backward", "forward", "unavailable", "unsupported"]

NAME = "cpu"


def unavailable() -> str | None:
    return extension.missing("cpu")


def unsupported(request) -> str | None:
    return None if request.device == "cpu" else f"it runs on CPU tensors, and input is on {request.device}"
