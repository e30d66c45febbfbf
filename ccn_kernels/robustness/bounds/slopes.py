"""The first order of all activations in an image's pixels: how far they would go if the network were linear.

Derivatives are float32 ones, in a tenth of float64's time. That is no gap in the proof: whatever matrix stands for the
Jacobian, the steps' ``error`` bounds all that it leaves out, what rounding has done to the matrix included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..precision import ieee_cpu
from .elementwise import MaxPool
from .regions import UNIT, Region, Slopes, Step

TANGENTS = 112  # pixels whose derivatives are taken at once
FLOOR = 1e-15  # more than underflow takes from a norm


def slopes(path: Sequence[Step], image: Tensor, norm: str) -> list[Slopes]:
    """Of every layer's input, and of the last one's output, at one image [1, C, H, W] of [0, 1]."""
    power, sums = 1 if norm == "linf" else 2, [torch.zeros(())]
    with ieee_cpu():
        for tangents, one_way in _pixels(image):
            found = [
                part.double()
                for derivatives in _derivatives(path, image, tangents)
                for part in _dual(derivatives, power, one_way)
            ]
            sums = [a + b for a, b in zip(sums, found, strict=True)] if len(sums) > 1 else found
    parts = iter([(1 + 2 * TANGENTS * UNIT) * part.pow(1 / power) + FLOOR for part in sums])
    return [
        Slopes(next(parts), next(parts), next(parts) if isinstance(step, MaxPool) else None) for step in [*path, None]
    ]


def batched(images: Sequence[Sequence[Slopes]]) -> list[Slopes]:
    """Several images' slopes, stacked."""
    return [
        Slopes(*(torch.cat(parts) if parts[0] is not None else None for parts in zip(*layer, strict=True)))  # type: ignore[arg-type]
        for layer in zip(*images, strict=True)
    ]


def _pixels(image: Tensor) -> Iterator[tuple[Tensor, bool]]:
    """Unit steps [T, C, H, W] of pixels, and whether they go that way only: from 0 upwards, from 1 downwards."""
    values = image.flatten()
    signs = torch.where(values == 1, -1.0, 1.0).float()
    at_wall = (values == 0) | (values == 1)
    for one_way in (True, False):
        for seen in (at_wall == one_way).nonzero().squeeze(1).split(TANGENTS):
            steps = torch.zeros(len(seen), len(values))
            steps[torch.arange(len(seen)), seen] = signs[seen]
            yield steps.view(-1, *image.shape[1:]), one_way


def _derivatives(path: Sequence[Step], image: Tensor, tangents: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """By pixels, of every layer's input; before a pool, also of windows' elements less the one that is taken."""
    center, radius = image, image.new_zeros(1)
    for step in path:
        yield tangents, step.ahead(center, tangents) if isinstance(step, MaxPool) else None
        tangents = step.tangents(center, tangents)
        center = step.region(Region(center, center, center, radius)).center
    yield tangents, None


def _dual(derivatives: tuple[Tensor, Tensor | None], power: int, one_way: bool) -> Iterator[Tensor]:
    """Of rise, fall and, before a pool, what may get ahead: the dual norm's sums over these pixels. [1, ...] each"""
    tangents, ahead = derivatives
    for part in (tangents, -tangents if one_way else tangents, ahead):
        if part is not None:
            part = part.clamp(min=0) if one_way else part.abs()
            shares = (part if power == 1 else part.square()).flatten(1)  # [T, ...]
            yield (shares.new_ones(1, len(shares)) @ shares).view(1, *part.shape[1:])  # faster than a sum over axis 0
