"""The map ``f(p) = p / (||p|| + delta)`` of a patch p near a center c; d is ``||p|| + delta``.

Arguments, all of one shape: ``norm`` is ||c||, ``change`` the largest ||p - c||, ``least`` the smallest ||p||.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .regions import Interval


def slope(norm: Tensor, change: Tensor, least: Tensor, delta: float) -> Tensor:
    """L with ``||f(p) - f(c)|| <= L ||p - c||``: the smaller of theorem 2's two bounds."""
    at, worst = norm + delta, least + delta
    cosine = (1 - (change / at).square()).clamp(min=0).sqrt()
    turned = (2 / (1 + cosine) + (delta / worst).square()).sqrt() / at
    return torch.where(change < at, turned, torch.inf).minimum((at * worst).rsqrt())


def spread(norm: Tensor, change: Tensor, least: Tensor, delta: float) -> Tensor:
    """The largest ``||f(p) - f(c)||``; f maps into the unit ball, whatever the change."""
    saturated = norm / (norm + delta) + (norm + change) / (norm + change + delta)
    return torch.minimum(slope(norm, change, least, delta) * change, saturated)


def quotient(product: Interval, divisor: Interval) -> Interval:
    """The range of u / d for u and d in these intervals; d is positive."""
    low, high = product
    return Interval(
        low / torch.where(low < 0, divisor.low, divisor.high), high / torch.where(high < 0, divisor.high, divisor.low)
    )


def bend(norm: Tensor, change: Tensor, least: Tensor) -> Tensor:
    """The largest ``||p|| - ||c|| - c / ||c|| . (p - c)``, which is never negative (theorem 4)."""
    squared = change.square() / (least + norm - change)
    return torch.where(change < norm, torch.minimum(squared, 2 * change), 2 * change)
