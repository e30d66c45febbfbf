"""What float32 means where a border is looked for, or a result counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from ..precision import tf32


def ieee() -> AbstractContextManager[None]:
    """IEEE arithmetic: TF32, PyTorch's default for convolutions, would move borders between classes."""
    return tf32(False)


@contextmanager
def ieee_cpu() -> Iterator[None]:
    """The same on a CPU, where float32 products may be bfloat16 ones if ``torch`` was told that they may."""
    settings = torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = [each.fp32_precision for each in settings]
    for each in settings:
        each.fp32_precision = "ieee"
    try:
        yield
    finally:
        for each, precision in zip(settings, before, strict=True):
            each.fp32_precision = precision
