"""The paper's networks (table 10) in every variant it compares.

Models take images in [0, 1] and return logits: the shift to [-0.5, 0.5] is their first layer, so that any attack
library accepts them unchanged.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import Tensor, nn

from .layers import CompactConv2d, CompactLinear

VARIANTS = ("sm", "ls", "brelu", "l2sm", "ccn", "ccn+ls", "bn", "lrn")
_POOL = "pool"


class Center(nn.Module):
    """Shifts images from [0, 1] to [-0.5, 0.5]."""

    def forward(self, input: Tensor) -> Tensor:
        return input - 0.5


def label_smoothing(variant: str, num_classes: int = 10) -> float:
    """The smoothing a variant trains with, as ``F.cross_entropy`` counts it: the true class is given 0.9."""
    return 0.1 * num_classes / (num_classes - 1) if variant in ("ls", "ccn+ls") else 0.0


def paper_mnist_cnn(
    variant: str = "sm",
    *,
    compact_layer: str | None = None,
    padding: str = "valid",
    dropout: float = 0.0,
    embedding: int | None = None,
    width: float = 1.0,
) -> nn.Sequential:
    """The MNIST network of table 10: images [N, 1, 28, 28] in [0, 1] to logits [N, 10].

    Args:
        variant: one of ``VARIANTS``.
        compact_layer: "conv1" to "conv4" or "fc1" to "fc3": a compact layer in that one place (table 13).
        padding: "valid" or "same" for the convolutions; the paper does not say which.
        dropout: rate after fc1; 0.5 in the networks that this one descends from.
        embedding: features that fc2 gives, for figure 2; they have no ReLU then. None for the 200 of table 10.
        width: the share of table 10's channels and units.
    """
    if padding not in ("valid", "same"):
        raise ValueError(f"padding must be 'valid' or 'same', got {padding!r}")
    c32, c64, c200 = _scaled(width, 32, 64, 200)
    features = c64 * (16 if padding == "valid" else 49)
    plan, widths = (c32, c32, _POOL, c64, c64, _POOL), (c200, embedding or c200, 10)
    network = _network(variant, compact_layer, plan, 1, features, widths, padding, dropout)
    return network if embedding is None else _without_relu(network, "fc2")


def vgg11(
    variant: str = "sm",
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    compact_layer: str | None = None,
    image_size: int = 32,
    width: float = 1.0,
) -> nn.Sequential:
    """The CIFAR-10 network of table 10: images [N, in_channels, S, S] in [0, 1] to logits [N, num_classes].

    Args:
        variant: one of ``VARIANTS``.
        compact_layer: "conv1" to "conv8" or "fc1" to "fc3": a compact layer in that one place.
        image_size: S, at least 16.
        width: the share of table 10's channels and units.
    """
    if image_size < 16:
        raise ValueError(f"image_size must be at least 16, got {image_size}")
    c64, c128, c256, c512 = _scaled(width, 64, 128, 256, 512)
    plan = (c64, c128, _POOL, c256, c256, _POOL, c512, c512, _POOL, c512, c512, _POOL)
    features, widths = c512 * (image_size // 16) ** 2, (c512, c512, num_classes)
    return _network(variant, compact_layer, plan, in_channels, features, widths, "same", 0.0)


def _scaled(width: float, *channels: int) -> tuple[int, ...]:
    if not 0 < width < math.inf:
        raise ValueError(f"width must be positive and finite, got {width}")
    return tuple(max(1, round(width * count)) for count in channels)


def _network(
    variant: str,
    compact_layer: str | None,
    plan: tuple[int | str, ...],
    channels: int,
    features: int,
    widths: tuple[int, ...],
    padding: str,
    dropout: float,
) -> nn.Sequential:
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {VARIANTS}, got {variant!r}")
    convs, pools = [f"conv{i + 1}" for i in range(len(plan) - plan.count(_POOL))], iter(range(1, len(plan)))
    names = [*convs, *(f"fc{i + 1}" for i in range(len(widths)))]
    compact = _compact_names(variant, compact_layer, names)
    net: OrderedDict[str, nn.Module] = OrderedDict(center=Center())
    remaining = iter(convs)
    for step in plan:
        if isinstance(step, str):
            net[f"pool{next(pools)}"] = nn.MaxPool2d(2)
            continue
        name = next(remaining)
        _add_conv(net, name, channels, step, padding, variant, name in compact)
        channels = step
    net["flatten"] = nn.Flatten()
    for index, width in enumerate(widths):
        name, last = f"fc{index + 1}", index == len(widths) - 1
        _add_linear(net, name, features, width, variant, name in compact, last)
        if index == 0 and dropout:
            net["dropout"] = nn.Dropout(dropout)
        features = width
    return _initialise(nn.Sequential(net))


def _without_relu(net: nn.Sequential, name: str) -> nn.Sequential:
    layer = net.get_submodule(name)
    if isinstance(layer, CompactLinear):
        layer.activation = None
    return nn.Sequential(OrderedDict(child for child in net.named_children() if child[0] != f"{name}_relu"))


def _compact_names(variant: str, compact_layer: str | None, names: list[str]) -> set[str]:
    if compact_layer is not None and compact_layer not in names:
        raise ValueError(f"compact_layer must be one of {names}, got {compact_layer!r}")
    chosen = {"ccn": names, "ccn+ls": names, "l2sm": names[-1:]}.get(variant, [])
    return {*chosen, *([compact_layer] if compact_layer else [])}


def _add_conv(
    net: OrderedDict[str, nn.Module], name: str, inputs: int, outputs: int, padding: str, variant: str, compact: bool
) -> None:
    fuse = compact and variant not in ("brelu", "bn")
    pad = 1 if padding == "same" else 0
    if compact:
        net[name] = CompactConv2d(inputs, outputs, 3, padding=pad, activation="relu" if fuse else None)
    else:
        net[name] = nn.Conv2d(inputs, outputs, 3, padding=pad)
    if variant == "bn":
        net[f"{name}_bn"] = nn.BatchNorm2d(outputs)
    if not fuse:
        net[f"{name}_relu"] = _activation(variant)
    if variant == "lrn":
        net[f"{name}_lrn"] = nn.LocalResponseNorm(5)


def _add_linear(
    net: OrderedDict[str, nn.Module], name: str, inputs: int, outputs: int, variant: str, compact: bool, last: bool
) -> None:
    fuse = compact and not last and variant != "brelu"
    if compact:
        net[name] = CompactLinear(inputs, outputs, activation="relu" if fuse else None)
    else:
        net[name] = nn.Linear(inputs, outputs)
    if not last and not fuse:
        net[f"{name}_relu"] = _activation(variant)


def _activation(variant: str) -> nn.Module:
    return nn.Hardtanh(0.0, 1.0) if variant == "brelu" else nn.ReLU()


def _initialise(model: nn.Sequential) -> nn.Sequential:
    """Kaiming normal and zero biases: with PyTorch's default the plain network does not leave its first plateau."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return model
