"""Named layers: what `ccn kernels` compiles, and what `ccn tune` measures unless it is told otherwise."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .spec import ConvSpec


class Layer(NamedTuple):
    """One layer, on a square (or cubic, or one-dimensional) input of ``size``. Rank 0 is a linear layer."""

    name: str
    batch: int
    in_channels: int
    out_channels: int
    size: int = 1
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    groups: int = 1
    rank: int = 2
    channels_last: bool = True

    @property
    def spec(self) -> ConvSpec:
        stride, padding, dilation = ((value,) * self.rank for value in (self.stride, self.padding, 1))
        return ConvSpec(stride, padding, dilation, self.groups, 0.01, False)

    def operands(self, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Random input, weight, bias and alpha; on the meta device they have no content."""
        x = torch.randn(self.batch, self.in_channels, *(self.size,) * self.rank, dtype=dtype, device=device)
        w = torch.randn(self.out_channels, self.in_channels // self.groups, *(self.kernel,) * self.rank, dtype=dtype,
                        device=device)  # fmt: skip
        if self.channels_last and self.rank >= 2:
            format = torch.channels_last if self.rank == 2 else torch.channels_last_3d
            x, w = x.contiguous(memory_format=format), w.contiguous(memory_format=format)
        return x, w, torch.randn(self.out_channels, dtype=dtype, device=device), torch.ones((), device=device)


def _three(prefix: str, batch: int, *shapes: tuple[int, int, int]) -> tuple[Layer, ...]:
    """3x3 layers with padding 1, stride 1, by (in, out, size)."""
    return tuple(Layer(f"{prefix} {i}-{o}@{size}", batch, i, o, size) for i, o, size in shapes)


LAYERS = (
    # VGG-11 on CIFAR-10: pooled as usual, then as the paper's table 10 pools
    *_three("vgg11", 256, (3, 64, 32), (64, 128, 16), (128, 256, 8), (256, 256, 8), (256, 512, 4), (512, 512, 4),
            (512, 512, 2)),
    *_three("vgg11 table 10", 256, (64, 128, 32), (128, 256, 16), (256, 256, 16), (256, 512, 8), (512, 512, 8)),
    *_three("resnet50", 128, (64, 64, 56), (128, 128, 28), (256, 256, 14), (512, 512, 7)),
    Layer("resnet50 3-64@224 7x7", 128, 3, 64, 224, kernel=7, stride=2, padding=3),
    Layer("resnet50 128-128@56 stride 2", 128, 128, 128, 56, stride=2),
    Layer("resnet50 256-256@28 stride 2", 128, 256, 256, 28, stride=2),
    Layer("resnet50 64-256@56 1x1", 128, 64, 256, 56, kernel=1, padding=0),
    Layer("resnet50 256-64@56 1x1", 128, 256, 64, 56, kernel=1, padding=0),
    Layer("resnet50 1024-256@14 1x1", 128, 1024, 256, 14, kernel=1, padding=0),
    *_three("mnist", 128, (1, 32, 28), (32, 32, 26), (32, 64, 13)),
    Layer("depthwise 96-96@56", 128, 96, 96, 56, groups=96),
    Layer("resnext 128-128@28 32 groups", 128, 128, 128, 28, groups=32),
    Layer("grouped 256-256@14 2 groups", 128, 256, 256, 14, groups=2),
    Layer("contiguous 64-128@16", 256, 64, 128, 16, channels_last=False),
    Layer("odd 63-65@16", 64, 63, 65, 16),
    Layer("linear 4096-4096", 256, 4096, 4096, kernel=1, padding=0, rank=0),
    Layer("1-d 64-64@1024 k5", 32, 64, 64, 1024, kernel=5, padding=2, rank=1),
    Layer("3-d 16-32@16", 8, 16, 32, 16, rank=3),
)  # fmt: skip
