"""The least that a pass must compute and move, and what this device reaches: the ceilings."""

from __future__ import annotations

from typing import Any

import torch

from ..workloads import Layer
from .case import precision
from .clock import Clock
from .settings import DTYPES
from .timing import interleaved

# elements copied, and the side of the matrices
SIZES = {"cuda": (1 << 30, 8192), "cpu": (1 << 26, 1024)}
ROUNDS = 10


def of_layer(layer: Layer, which: str, itemsize: int) -> tuple[int, int]:
    """Operations and bytes of a pass by the fused method.

    Forward reads x and w, and writes y. Backward reads g and the quotient, writes e and reads it for either product,
    reads x and w, and writes their gradients: x is read for the norm's share of its own gradient as well. Training
    is both, and writes the quotient.
    """
    x, w, y = layer.inputs, layer.weights, layer.outputs
    elements = {"forward": x + w + y, "backward": 3 * x + 2 * w + 5 * y, "training": 4 * x + 3 * w + 7 * y}[which]
    return {"forward": 1, "backward": 2, "training": 3}[which] * layer.flop, elements * itemsize


def ceilings(clock: Clock, dtypes: tuple[str, ...], sizes: tuple[int, int] | None = None) -> dict[str, Any]:
    """Bytes a second by a large copy, operations a second by a large matrix product in each dtype; of medians."""
    elements, side = sizes or SIZES[clock.device]
    rate = _copy_rate(clock, elements)
    clock.free()
    return {"bytes_per_s": rate, "flop_per_s": {dtype: _product_rate(clock, dtype, side) for dtype in dtypes}}


def _copy_rate(clock: Clock, elements: int) -> float:
    source = torch.ones(elements, device=clock.device)
    target = torch.empty_like(source)
    times = interleaved({"copy": lambda: target.copy_(source)}, ROUNDS, clock.sample)
    return 2 * source.numel() * source.element_size() / (1e-6 * times["copy"]["median"])


def _product_rate(clock: Clock, dtype: str, side: int) -> float:
    # at random: a GPU multiplies ones and zeros faster
    a, b = (torch.randn(side, side, device=clock.device, dtype=DTYPES[dtype]) for _ in range(2))
    product = torch.empty_like(a)
    with precision(dtype):
        times = interleaved({"product": lambda: torch.mm(a, b, out=product)}, ROUNDS, clock.sample)
    return 2 * side**3 / (1e-6 * times["product"]["median"])


def microseconds(flop: int, moved: int, dtype: str, limits: dict[str, Any]) -> float:
    return 1e6 * max(flop / limits["flop_per_s"][dtype], moved / limits["bytes_per_s"])
