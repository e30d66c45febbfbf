"""Convolutions and linear layers, compact or not: what they make of regions, and of the first order."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...layers import CompactConv2d, CompactLinear
from .compact import bend, quotient, slope, spread
from .regions import SLACK, UNIT, Interval, Region, Slopes, along, loosely_met, shifted, sorted_ends
from .rows import Rows


class Patches(NamedTuple):
    """Of patches p in a region around c: ||c||, the largest ||p - c||, the ends of ||p||; [N, G, *out] each."""

    norm: Tensor
    change: Tensor
    least: Tensor
    most: Tensor


class Linear:
    """``y = W p + b`` for every patch p."""

    def __init__(self, rows: Rows, bias: Tensor | None) -> None:
        self.rows, self.bias = rows, bias

    def region(self, region: Region) -> Region:
        rows, patches = self.rows, _patches(self.rows, region)
        center, far = rows.product(region.center), rows.norms * rows.each(patches.change)
        low, high = _ranges(rows, Interval(region.low, region.high))
        found = Region(center, torch.maximum(low, center - far), torch.minimum(high, center + far),
                       rows.overall * region.radius)  # fmt: skip
        return shifted(loosely_met(found, SLACK * rows.norms * rows.each(patches.most)), self.bias)

    def tangents(self, center: Tensor, tangents: Tensor) -> Tensor:
        return self.rows.product(tangents)

    def error(self, before: Region, after: Region, error: Interval, slopes: Slopes, size: Tensor) -> Interval:
        return _ranges(self.rows, error).widened(_rounding(self.rows, error, slopes, size))


class Compact:
    """``y = alpha * W p / (||p|| + delta) + b`` for every patch p.

    Raises:
        ValueError: delta is 0.
    """

    def __init__(self, rows: Rows, bias: Tensor | None, alpha: float, delta: float) -> None:
        if delta == 0:
            raise ValueError("no bound is proved of delta = 0: the quotient jumps where a patch is all zeros")
        self.rows, self.bias, self.alpha, self.delta = rows, bias, alpha, delta
        self.linear = Linear(rows, None)

    def region(self, region: Region) -> Region:
        rows, delta = self.rows, self.delta
        norm, change, least, most = patches = _patches(rows, region)
        products = self.linear.region(region)
        center = products.center / rows.each(norm + delta)
        divisor = Interval(rows.each(least + delta), rows.each(most + delta))
        low, high = quotient(Interval(products.low, products.high), divisor)
        far = rows.norms * rows.each(spread(norm, change, least, delta))
        cap = rows.norms * rows.each(most / (most + delta))
        low, high = torch.maximum(low, center - far).maximum(-cap), torch.minimum(high, center + far).minimum(cap)
        low, high = Interval(low, high).scaled(self.alpha)
        found = Region(self.alpha * center, low, high, abs(self.alpha) * self._radius(patches, center, region.radius))
        slack = SLACK * abs(self.alpha) * rows.norms * rows.each(most / (least + delta))
        return shifted(loosely_met(found, slack), self.bias)

    def _radius(self, patches: Patches, center: Tensor, radius: Tensor) -> Tensor:
        """The best of theorem 3's three bounds, without alpha. [N]"""
        rows, (norm, change, least, _) = self.rows, patches
        squares = slope(norm, change, least, self.delta).square()
        divisor = least + self.delta
        split = rows.overall / divisor.flatten(1).amin(1)
        split = split + rows.most_seen(rows.grouped(center) / divisor.square()).sqrt()
        return torch.minimum(
            torch.minimum(rows.patchwise * rows.most_seen(squares).sqrt(), split) * radius,
            rows.patchwise * spread(norm, change, least, self.delta).flatten(1).norm(dim=1),
        )

    def tangents(self, center: Tensor, tangents: Tensor) -> Tensor:
        """``alpha * (W t - q (c . t) / ||c||) / d``, with q = W f(c)."""
        rows, norm, dtype = self.rows, self.rows.squares(center).sqrt(), tangents.dtype
        divisor = rows.each(norm + self.delta)
        pull = (rows.product(center) / divisor / _nonzero(rows.each(norm))).to(dtype)
        across = rows.product(tangents) - pull * rows.each(rows.total(center.to(dtype) * tangents))
        return (self.alpha / divisor).to(dtype) * across

    def error(self, before: Region, after: Region, error: Interval, slopes: Slopes, size: Tensor) -> Interval:
        """What theorem 4 leaves: the first order of the error, and a remainder of the second order."""
        rows, (norm, change, least, most) = self.rows, _patches(self.rows, before)
        divisor = rows.each(norm + self.delta)
        q = rows.product(before.center) / divisor
        ends = sorted_ends(before.center * error.low, before.center * error.high)
        radial = Interval(*(rows.each(rows.total(end) / _nonzero(norm)) for end in ends))
        first = _ranges(rows, error).plus(radial.scaled(-q))
        eta = Interval(rows.each(least - norm), rows.each(most - norm))
        moved = Interval(after.low - after.center, after.high - after.center).scaled(1 / (self.alpha or 1.0))
        kappa = q * rows.each(bend(norm, change, least))
        second = eta.times(moved).plus(sorted_ends(torch.zeros_like(kappa), kappa)).scaled(-1.0)
        second = second.widened(SLACK * second.largest)
        found = first.plus(second).widened(3 * _rounding(rows, error, slopes, size))
        return found.scaled(self.alpha / divisor)


def weighted(layer: nn.Module, rows: Rows, bias: Tensor | None) -> Linear | Compact:
    """A layer, its fused ReLU apart, with these rows and bias instead of its own."""
    if isinstance(layer, (CompactConv2d, CompactLinear)):
        return Compact(rows, bias, layer.alpha.item(), layer.delta)
    return Linear(rows, bias)


def _ranges(rows: Rows, box: Interval) -> Interval:
    """The range of ``W p``; [N, O, *out] each."""
    middle, half = rows.product((box.high + box.low) / 2), rows.magnitude((box.high - box.low) / 2)
    return Interval(middle - half, middle + half)


def _patches(rows: Rows, region: Region) -> Patches:
    norm, change = rows.squares(region.center).sqrt(), rows.squares(region.reach).sqrt()
    change = (1 + SLACK) * change.minimum(along(region.radius, change))
    least = torch.maximum(rows.squares(region.smallest).sqrt(), norm - change)
    most = torch.minimum(rows.squares(region.largest).sqrt(), norm + change)
    return Patches(norm, change, (least - SLACK * norm).clamp(min=0), (1 + SLACK) * most + SLACK * norm)


def _rounding(rows: Rows, error: Interval, slopes: Slopes, size: Tensor) -> Tensor:
    """Of a product with errors and with tangents, which the first order at this size came from. [N, O, *out]"""
    first = along(size, slopes.rise) * (slopes.rise + slopes.fall)
    magnitude = SLACK * error.largest + (rows.terms + 16) * UNIT * first
    return rows.norms * rows.each(rows.squares(magnitude).sqrt())


def _nonzero(norm: Tensor) -> Tensor:
    return torch.where(norm == 0, 1.0, norm)
