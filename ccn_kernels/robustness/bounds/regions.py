"""Sets of activations: a box and a ball in L2 around those of the image itself; and what the first order leaves out.

All is float64. A sum of n terms is off by n * 2**-53 of the sum of their magnitudes at most, in any order: every bound
is moved outwards by SLACK of these magnitudes, which is more than that for n < 80,000.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

SLACK = 1e-11
UNIT = 2.0**-23  # twice float32's, for the derivatives of the first order


class Region(NamedTuple):
    """All x with ``low <= x <= high`` and ``||x - center||_2 <= radius``; [N, ...] each, the radius [N]."""

    center: Tensor
    low: Tensor
    high: Tensor
    radius: Tensor

    @property
    def reach(self) -> Tensor:
        """How far the box goes from the center, elementwise. [N, ...]"""
        return torch.maximum(self.high - self.center, self.center - self.low)

    @property
    def largest(self) -> Tensor:
        """The largest magnitude in the box, elementwise. [N, ...]"""
        return torch.maximum(self.low.abs(), self.high.abs())

    @property
    def smallest(self) -> Tensor:
        """The smallest magnitude in the box, elementwise: 0 where it holds both signs. [N, ...]"""
        return torch.maximum(self.low, -self.high).clamp(min=0)


class Interval(NamedTuple):
    """Everything from low to high; [N, ...] each."""

    low: Tensor
    high: Tensor

    def widened(self, slack: Tensor) -> Interval:
        return Interval(self.low - slack, self.high + slack)

    def scaled(self, factor: Tensor | float) -> Interval:
        """By a factor of either sign."""
        return sorted_ends(self.low * factor, self.high * factor)

    @property
    def largest(self) -> Tensor:
        """The largest magnitude, elementwise."""
        return torch.maximum(self.low.abs(), self.high.abs())

    def plus(self, other: Interval) -> Interval:
        return Interval(self.low + other.low, self.high + other.high)

    def times(self, other: Interval) -> Interval:
        products = [a * b for a in self for b in other]
        return Interval(torch.stack(products).amin(0), torch.stack(products).amax(0))


class Slopes(NamedTuple):
    """The first order of activations in the image: ``-fall * r <= J (x' - x) <= rise * r`` at radius r; [N, ...] each.

    ``ahead`` [N, taps, ...], before a pool: the rise of a window's elements over the one that is largest at the center.
    """

    rise: Tensor
    fall: Tensor
    ahead: Tensor | None = None


class Step(Protocol):
    """A layer. Tangents [T, ...] are derivatives of its input, at one center [1, ...], by T pixels.

    ``error`` bounds ``y - y(c) - J (x' - x)`` for the images x' within ``size`` [N] of x, given such an interval of the
    input, the input's region and slopes, and the output's region.
    """

    def region(self, region: Region) -> Region: ...

    def tangents(self, center: Tensor, tangents: Tensor) -> Tensor: ...

    def error(self, before: Region, after: Region, error: Interval, slopes: Slopes, size: Tensor) -> Interval: ...


def sorted_ends(one: Tensor, other: Tensor) -> Interval:
    return Interval(torch.minimum(one, other), torch.maximum(one, other))


def along(values: Tensor, like: Tensor) -> Tensor:
    """Values [N], broadcast over a tensor [N, ...]."""
    return values.view(-1, *[1] * (like.dim() - 1))


def around(images: Tensor, size: Tensor, norm: str) -> Region:
    """The images of [0, 1] within ``size`` [N] of the given ones [N, ...] in a norm, "linf" or "l2"."""
    reach = along(size, images)
    low, high = (images - reach).clamp(min=0), (images + reach).clamp(max=1)
    return met(Region(images, low, high, torch.full_like(size, torch.inf) if norm == "linf" else size))


def met(region: Region) -> Region:
    """The same set: the ball no wider than the box's corners, the box no wider than the ball."""
    center, low, high, radius = region
    radius = torch.minimum(radius, (1 + SLACK) * region.reach.flatten(1).norm(dim=1))
    reach = along(radius, center)
    return Region(center, torch.maximum(low, center - reach), torch.minimum(high, center + reach), radius)


def loosely_met(region: Region, slack: Tensor) -> Region:
    """``slack`` [N, ...]: what rounding may have done to each element, of the center too."""
    radius = (1 + SLACK) * region.radius + slack.flatten(1).norm(dim=1)
    return met(Region(region.center, region.low - slack, region.high + slack, radius))


def shifted(region: Region, shift: Tensor | None) -> Region:
    """Every channel [N, C, ...] moved by a number, [C] or [N, C]; None for 0."""
    if shift is None:
        return region
    shift = shift.view(*shift.shape, *[1] * (region.center.dim() - 2))
    moved = Region(region.center + shift, region.low + shift, region.high + shift, region.radius)
    return loosely_met(moved, SLACK * (shift.abs() + region.largest))
