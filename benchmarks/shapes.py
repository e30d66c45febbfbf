"""Named workloads: 3x3 convolutions, stride 1, padding 1, on square maps."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Shape(NamedTuple):
    """A convolution layer and its batch."""

    name: str
    batch: int
    in_channels: int
    out_channels: int
    size: int

    def input(self, memory_format: torch.memory_format) -> torch.Tensor:
        image = torch.randn(self.batch, self.in_channels, self.size, self.size)
        return image.contiguous(memory_format=memory_format)


# What a CPU is measured on: a first layer, a small one, and VGG-11's on CIFAR-10.
CPU = (
    Shape("3-64@32", 64, 3, 64, 32),
    Shape("32-32@28", 128, 32, 32, 28),
    Shape("64-128@16", 64, 64, 128, 16),
    Shape("128-256@8", 64, 128, 256, 8),
    Shape("256-256@8", 64, 256, 256, 8),
    Shape("512-512@4", 64, 512, 512, 4),
)
