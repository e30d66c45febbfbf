"""What float32 means in PyTorch's products on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """TF32, or IEEE arithmetic, in convolutions and matrix products alike."""
    switches, value = _switches(allowed)
    before = [getattr(*switch) for switch in switches]
    for switch in switches:
        setattr(*switch, value)
    try:
        yield
    finally:
        for switch, old in zip(switches, before, strict=True):
            setattr(*switch, old)


def _switches(allowed: bool) -> tuple[list[tuple[Any, str]], Any]:
    """PyTorch has two generations of switches, and refuses to read the older one while the newer says other things."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    older = [(cudnn, "allow_tf32"), (matmul, "allow_tf32")]
    try:
        for switch in older:
            getattr(*switch)
    except RuntimeError:
        newer = [(cudnn.conv, "fp32_precision"), (matmul, "fp32_precision")]  # type: ignore[attr-defined]
        return newer, "tf32" if allowed else "ieee"
    return older, allowed
