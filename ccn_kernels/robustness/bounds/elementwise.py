"""Activations, pools and batch normalisation: what they make of regions, and of the first order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .regions import SLACK, UNIT, Interval, Region, Slopes, along, loosely_met, met, shifted, sorted_ends


class Monotone:
    """Elementwise, monotone, piecewise linear with slopes 0 and 1: ReLU, clamps, shifts, changes of shape."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def region(self, region: Region) -> Region:
        center, low, high = (self.layer(part) for part in region[:3])
        return met(Region(center, low, high, region.radius))

    def tangents(self, center: Tensor, tangents: Tensor) -> Tensor:
        return self._shaped(self._open(center).to(tangents.dtype) * tangents)

    def error(self, before: Region, after: Region, error: Interval, slopes: Slopes, size: Tensor) -> Interval:
        """Of slope s at c, ``h(x) - h(c) - s (x - c)`` is monotone in x: its ends are those of the box."""
        is_open, (center, low, high, _) = self._open(before.center), before
        ends = [self.layer(x) - after.center - self._shaped(is_open * (x - center)) for x in (low, high)]
        kept = Interval(*(self._shaped(is_open * end) for end in error))
        return kept.plus(sorted_ends(*ends)).widened(SLACK * self._shaped(before.largest + 1))

    def _open(self, center: Tensor) -> Tensor:
        """Its slope at the center, 0 or 1."""
        if isinstance(self.layer, nn.ReLU):
            return (center > 0).to(center.dtype)
        if isinstance(self.layer, nn.Hardtanh):
            return ((center > self.layer.min_val) & (center < self.layer.max_val)).to(center.dtype)
        return torch.ones_like(center)

    def _shaped(self, values: Tensor) -> Tensor:
        return self.layer(values) if isinstance(self.layer, nn.Flatten) else values


class MaxPool:
    """The maxima of two windows differ by no more than the windows do.

    Raises:
        ValueError: it is padded or dilated, or also returns indices.
    """

    def __init__(self, layer: nn.MaxPool2d) -> None:
        plain = layer.dilation in (1, (1, 1)) and layer.padding in (0, (0, 0)) and not layer.ceil_mode
        if not plain or layer.return_indices:
            raise ValueError(f"bounds are known of max-pooling without padding and dilation, got {layer}")
        self.layer, self.kernel, self.stride = layer, _pair(layer.kernel_size), _pair(layer.stride)
        overlap = [-(-k // s) for k, s in zip(self.kernel, self.stride, strict=True)]
        self.gain = (1 + SLACK) * (overlap[0] * overlap[1]) ** 0.5  # an element lies in so many windows

    def region(self, region: Region) -> Region:
        center, low, high = (self.layer(part) for part in region[:3])
        return met(Region(center, low, high, self.gain * region.radius))

    def tangents(self, center: Tensor, tangents: Tensor) -> Tensor:
        return self.taken(center, self.windows(tangents)).squeeze(1)

    def error(self, before: Region, after: Region, error: Interval, slopes: Slopes, size: Tensor) -> Interval:
        """What may be ahead of the element that was taken; ``slopes`` are those of the pool itself."""
        assert slopes.ahead is not None
        low, high = self.windows(error.low), self.windows(error.high)
        taken = Interval(self.taken(before.center, low), self.taken(before.center, high))
        behind = self.windows(before.center) - after.center.unsqueeze(1)
        ahead = behind + along(size, behind) * slopes.ahead + high - taken.low
        is_taken = self.index(before.center) == torch.arange(ahead.shape[1]).view(1, -1, 1, 1, 1)
        box = self.windows(before.high) - self.taken(before.center, self.windows(before.low))
        more = torch.where(is_taken, 0.0, torch.minimum(ahead, box)).amax(1).clamp(min=0)
        slack = SLACK * (self.layer(before.largest) + more)
        return Interval(taken.low.squeeze(1), taken.high.squeeze(1) + more).widened(slack)

    def ahead(self, center: Tensor, tangents: Tensor) -> Tensor:
        """The tangents of a window's elements without those of the element that is taken. [T, taps, C, *out]"""
        windows = self.windows(tangents)
        return windows - self.taken(center, windows)

    def windows(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, taps, C, *out]."""
        unfolded = x.unfold(2, self.kernel[0], self.stride[0]).unfold(3, self.kernel[1], self.stride[1])
        return unfolded.flatten(4).permute(0, 4, 1, 2, 3)

    def index(self, center: Tensor) -> Tensor:
        """Which element of a window is taken. [N, 1, C, *out]"""
        return self.windows(center).argmax(1, keepdim=True)

    def taken(self, center: Tensor, windows: Tensor) -> Tensor:
        index = self.index(center)
        return windows.gather(1, index.expand(len(windows), *index.shape[1:]))


class BatchNorm:
    """Batch normalisation in evaluation: a scale and a shift for every channel.

    Raises:
        ValueError: it has no running statistics.
    """

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        if layer.running_mean is None or layer.running_var is None:
            raise ValueError(f"bounds are known of batch normalisation by running statistics, got {layer}")
        scale = (layer.running_var + layer.eps).rsqrt() * (1 if layer.weight is None else layer.weight.detach())
        self.shift = (0 if layer.bias is None else layer.bias.detach()) - scale * layer.running_mean
        self.scale = scale.view(-1, 1, 1)

    def region(self, region: Region) -> Region:
        low, high = Interval(region.low, region.high).scaled(self.scale)
        found = Region(self.scale * region.center, low, high, self.scale.abs().amax() * region.radius)
        return shifted(loosely_met(found, SLACK * self.scale.abs() * region.largest), self.shift)

    def tangents(self, center: Tensor, tangents: Tensor) -> Tensor:
        return self.scale.to(tangents.dtype) * tangents

    def error(self, before: Region, after: Region, error: Interval, slopes: Slopes, size: Tensor) -> Interval:
        first = along(size, slopes.rise) * (slopes.rise + slopes.fall)
        return error.scaled(self.scale).widened(self.scale.abs() * (SLACK * error.largest + 4 * UNIT * first))


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)
