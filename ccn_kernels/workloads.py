"""Named layers: what `ccn bench` measures, `ccn kernels` compiles, and `ccn tune` tunes for."""

from __future__ import annotations

import math
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

    @property
    def out_size(self) -> int:
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def inputs(self) -> int:
        """Elements of the input; likewise ``outputs`` and ``weights``."""
        return self.batch * self.in_channels * self.size**self.rank

    @property
    def outputs(self) -> int:
        return self.batch * self.out_channels * self.out_size**self.rank

    @property
    def weights(self) -> int:
        return self.out_channels * (self.in_channels // self.groups) * self.kernel**self.rank

    @property
    def flop(self) -> int:
        """Of the product alone; a multiply-add counts as two."""
        return 2 * self.batch * self.out_size**self.rank * self.weights

    def operands(self, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Random input, weight, bias and alpha; on the meta device they have no content."""
        x = torch.randn(self.batch, self.in_channels, *(self.size,) * self.rank, dtype=dtype, device=device)
        w = torch.randn(self.out_channels, self.in_channels // self.groups, *(self.kernel,) * self.rank, dtype=dtype,
                        device=device)  # fmt: skip
        if self.channels_last and self.rank >= 2:
            format = torch.channels_last if self.rank == 2 else torch.channels_last_3d
            x, w = x.contiguous(memory_format=format), w.contiguous(memory_format=format)
        return x, w, torch.randn(self.out_channels, dtype=dtype, device=device), torch.ones((), device=device)


def _conv(
    batch: int, inputs: int, outputs: int, size: int, kernel: int = 3, stride: int = 1, padding: int | None = None
) -> Layer:
    """Named in->out@size, then the kernel if it is not 3x3, and the stride if it is not 1: "3-64@224 7x7/2"."""
    name = f"{inputs}-{outputs}@{size}" + f" {kernel}x{kernel}" * (kernel != 3) + f"/{stride}" * (stride != 1)
    padding = kernel // 2 if padding is None else padding
    return Layer(name, batch, inputs, outputs, size, kernel=kernel, stride=stride, padding=padding)


def _convs(batch: int, *shapes: tuple[int, ...]) -> tuple[Layer, ...]:
    return tuple(_conv(batch, *shape) for shape in shapes)


# VGG-11 on CIFAR-10, at the resolutions after an off-the-shelf VGG-11's pools ...
VGG11 = _convs(256, (3, 64, 32), (64, 128, 16), (128, 256, 8), (256, 256, 8), (256, 512, 4), (512, 512, 4),
               (512, 512, 2))  # fmt: skip

# ... and at those of the paper's table 10, which pools later.
VGG11_TABLE10 = (VGG11[0], *_convs(256, (64, 128, 32), (128, 256, 16), (256, 256, 16), (256, 512, 8), (512, 512, 8)),
                 VGG11[5])  # fmt: skip

# Every convolution of ResNet-50 on ImageNet: its 3x3 layers, its stem, and the 1x1 layers around them.
_RESNET50_3X3 = _convs(128, (64, 64, 56), (128, 128, 56, 3, 2), (128, 128, 28), (256, 256, 28, 3, 2), (256, 256, 14),
                       (512, 512, 14, 3, 2), (512, 512, 7))  # fmt: skip
_RESNET50_1X1 = _convs(
    128, (64, 64, 56, 1), (64, 256, 56, 1), (256, 64, 56, 1), (256, 128, 56, 1), (256, 512, 56, 1, 2),
    (128, 512, 28, 1), (512, 128, 28, 1), (512, 256, 28, 1), (512, 1024, 28, 1, 2), (256, 1024, 14, 1),
    (1024, 256, 14, 1), (1024, 512, 14, 1), (1024, 2048, 14, 1, 2), (512, 2048, 7, 1), (2048, 512, 7, 1),
)  # fmt: skip
RESNET50 = (_conv(128, 3, 64, 224, 7, 2), *_RESNET50_3X3, *_RESNET50_1X1)

# The paper's MNIST network: four convolutions without padding, three fully connected layers.
MNIST = (
    *(_conv(128, i, o, size, padding=0) for i, o, size in ((1, 32, 28), (32, 32, 26), (32, 64, 12), (64, 64, 10))),
    *(Layer(f"linear {i}-{o}", 128, i, o, kernel=1, padding=0, rank=0)
      for i, o in ((1024, 200), (200, 200), (200, 10))),
)  # fmt: skip

DEPTHWISE = Layer("depthwise 96-96@56", 128, 96, 96, 56, groups=96)
RESNEXT = Layer("resnext 128-128@28 32 groups", 128, 128, 128, 28, groups=32)
TWO_GROUPS = Layer("grouped 256-256@14 2 groups", 128, 256, 256, 14, groups=2)
GROUPED = (
    DEPTHWISE,
    Layer("depthwise 144-144@56/2", 128, 144, 144, 56, stride=2, groups=144),
    Layer("depthwise 512-512@14", 128, 512, 512, 14, groups=512),
    RESNEXT,
    TWO_GROUPS,
)
LINEAR = Layer("linear 4096-4096", 256, 4096, 4096, kernel=1, padding=0, rank=0)

# KERNEL-NOTES' shapes: what the targets are judged by. A CPU's are a first layer, a small one, and VGG-11's.
KERNEL_NOTES = (*VGG11, *(layer for layer in _RESNET50_3X3 if layer.name not in ("256-256@28/2", "512-512@14/2")))
KERNEL_NOTES_CPU = (
    *_convs(64, (3, 64, 32)),
    *_convs(128, (32, 32, 28)),
    *_convs(64, (64, 128, 16), (128, 256, 8), (256, 256, 8), (512, 512, 4)),
)

# For trying a benchmark out, and where kernels are interpreted.
TINY = (*_convs(1, (3, 16, 4)), *_convs(2, (16, 16, 4), (16, 32, 4, 3, 2)))

# By suite, with a GPU's batches; of_suite() gives those of a device.
SUITES = {
    "kernel-notes": KERNEL_NOTES,
    "vgg11": VGG11,
    "vgg11-table10": VGG11_TABLE10,
    "resnet50": RESNET50,
    "mnist": MNIST,
    "grouped": GROUPED,
    "linear": (LINEAR,),
    "tiny": TINY,
}

# What one forward pass on a CPU may take at most: 10 to 50 ms on two cores.
_CPU_FLOP, _CPU_ELEMENTS = 3e9, 1 << 23


def of_suite(name: str, device: str) -> tuple[Layer, ...]:
    """A suite's layers with a batch that suits the device."""
    if device == "cpu":
        return KERNEL_NOTES_CPU if name == "kernel-notes" else tuple(_for_cpu(layer) for layer in SUITES[name])
    return SUITES[name]


def _for_cpu(layer: Layer) -> Layer:
    one = layer._replace(batch=1)
    most = min(_CPU_FLOP / one.flop, _CPU_ELEMENTS / (one.inputs + one.outputs))
    return layer._replace(batch=min(layer.batch, 2 ** max(0, math.floor(math.log2(most)))))


def _of_resnet50(*names: str) -> tuple[Layer, ...]:
    return tuple(layer for name in names for layer in RESNET50 if layer.name == name)


# What `ccn kernels` compiles (CI's time depends on their number), and what `ccn tune` measures by default.
LAYERS = (
    *VGG11,
    *VGG11_TABLE10[1:6],
    *_of_resnet50("64-64@56", "128-128@28", "256-256@14", "512-512@7", "3-64@224 7x7/2", "128-128@56/2",
                  "256-256@28/2", "64-256@56 1x1", "256-64@56 1x1", "1024-256@14 1x1"),
    *_convs(128, (1, 32, 28), (32, 32, 26), (32, 64, 13)),
    DEPTHWISE,
    RESNEXT,
    TWO_GROUPS,
    Layer("contiguous 64-128@16", 256, 64, 128, 16, channels_last=False),
    Layer("odd 63-65@16", 64, 63, 65, 16),
    LINEAR,
    Layer("1-d 64-64@1024 k5", 32, 64, 64, 1024, kernel=5, padding=2, rank=1),
    Layer("3-d 16-32@16", 8, 16, 32, 16, rank=3),
)  # fmt: skip
