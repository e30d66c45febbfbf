"""Whole networks: VGG-11 on images of CIFAR-10's size, ResNet-50 on ImageNet's; a training step, and inference."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import convert, models


class Network(NamedTuple):
    """``fuses``: whether a ReLU directly follows a layer anywhere, so that fusing it makes a network of its own."""

    name: str
    batch: int
    size: int
    classes: int
    make: Callable[[], nn.Module]
    fuses: bool = True

    def images(self) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return torch.rand(self.batch, 3, self.size, self.size)

    def network(self) -> nn.Module:
        """Always with the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make()


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1, each with batch norm, and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            *_normed(inputs, width, 1), nn.ReLU(), *_normed(width, width, 3, stride), nn.ReLU(),
            *_normed(width, outputs, 1),
        )  # fmt: skip
        plain = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if plain else nn.Sequential(*_normed(inputs, outputs, 1, stride))

    def forward(self, input: Tensor) -> Tensor:
        return (self.body(input) + self.shortcut(input)).relu()


def _normed(inputs: int, outputs: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv, nn.BatchNorm2d(outputs)


def resnet50(classes: int = 1000) -> nn.Module:
    """He et al., 2015, with the strides in the 3x3 layers: images [N, 3, H, W] to logits [N, classes]."""
    blocks: list[nn.Module] = []
    inputs = 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(count):
            blocks.append(Bottleneck(inputs, width, stride if number == 0 else 1))
            inputs = 4 * width
    stem = [*_normed(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def _small() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(32, 10)]
    return nn.Sequential(OrderedDict((str(i), layer) for i, layer in enumerate(layers)))


def _networks(vgg: int, resnet: int) -> tuple[Network, ...]:
    return (
        Network("vgg11", vgg, 32, 10, lambda: models.vgg11("sm")),
        Network("resnet50", resnet, 224, 1000, resnet50, fuses=False),  # batch norm stands between
    )


NETWORKS = {"cpu": _networks(32, 4), "cuda": _networks(256, 128)}
TINY = (Network("small", 2, 8, 10, _small),)


def variant_of(plain: nn.Module, provider: str, variant: str | None, backend: str | None, alpha: float) -> nn.Module:
    """The plain network, or it made compact: with ReLUs fused where they directly follow, unless they are "apart"."""
    if provider == "conv":
        return plain
    compact = convert.to_compact(plain, alpha=alpha, fuse_relu=variant != "relu apart")
    for layer in convert.compact_layers(compact):
        layer.backend = backend
    return compact


def inference(network: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    network.eval()
    return torch.no_grad()(lambda: network(images))


def training(network: nn.Module, images: Tensor, target: Tensor) -> Callable[[], Tensor]:
    """Forward, loss, backward and a step of SGD with momentum."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

    def call() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(network(images).float(), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return call


def resident_bytes(network: nn.Module) -> int:
    """What lives between two training steps: weights, their gradients and momenta, running statistics."""
    parameters = list(network.parameters())
    tensors: list[Any] = [*parameters, *(p.grad for p in parameters if p.grad is not None), *network.buffers()]
    momenta = sum(p.numel() * p.element_size() for p in parameters if p.grad is not None)
    return momenta + sum(tensor.numel() * tensor.element_size() for tensor in tensors)
