"""Named workloads: 3x3 convolutions, padding 1, on square maps."""

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
    stride: int = 1

    @property
    def out_size(self) -> int:
        return (self.size - 1) // self.stride + 1

    @property
    def flop(self) -> int:
        """Of the convolution alone; a multiply-add counts as two."""
        return 2 * self.batch * self.out_size**2 * self.out_channels * self.in_channels * 9

    @property
    def inputs(self) -> int:
        return self.batch * self.in_channels * self.size**2

    @property
    def outputs(self) -> int:
        return self.batch * self.out_channels * self.out_size**2

    @property
    def weights(self) -> int:
        return 9 * self.in_channels * self.out_channels

    def input(
        self, memory_format: torch.memory_format, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        image = torch.randn(self.batch, self.in_channels, self.size, self.size, device=device, dtype=dtype)
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

# What a GPU is measured on: VGG-11 on CIFAR-10, at the resolutions after an off-the-shelf VGG-11's pools ...
VGG11 = (
    Shape("3-64@32", 256, 3, 64, 32),
    Shape("64-128@16", 256, 64, 128, 16),
    Shape("128-256@8", 256, 128, 256, 8),
    Shape("256-256@8", 256, 256, 256, 8),
    Shape("256-512@4", 256, 256, 512, 4),
    Shape("512-512@4", 256, 512, 512, 4),
    Shape("512-512@2", 256, 512, 512, 2),
)

# ... the 3x3 layers of ResNet-50 on ImageNet ...
RESNET50 = (
    Shape("64-64@56", 128, 64, 64, 56),
    Shape("128-128@56/2", 128, 128, 128, 56, 2),
    Shape("128-128@28", 128, 128, 128, 28),
    Shape("256-256@14", 128, 256, 256, 14),
    Shape("512-512@7", 128, 512, 512, 7),
)

# ... and VGG-11 at the resolutions of the paper's table 10, which pools later.
PAPER = (
    Shape("64-128@32", 256, 64, 128, 32),
    Shape("128-256@16", 256, 128, 256, 16),
    Shape("256-256@16", 256, 256, 256, 16),
    Shape("256-512@8", 256, 256, 512, 8),
    Shape("512-512@8", 256, 512, 512, 8),
)

# For trying a benchmark out where kernels are interpreted.
TINY = (Shape("3-16@4", 1, 3, 16, 4), Shape("16-16@4", 2, 16, 16, 4), Shape("16-32@4/2", 2, 16, 32, 4, 2))
