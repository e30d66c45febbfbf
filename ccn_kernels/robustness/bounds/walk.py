"""A whole network, layer by layer: regions, and the first order in the image with bounds of what it leaves out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ...layers import CompactConv2d, CompactLinear
from ...models import Center
from .elementwise import BatchNorm, MaxPool, Monotone
from .regions import Interval, Region, Slopes, Step, along, met
from .rows import Convolution, Dense, Rows
from .weighted import weighted

WEIGHTED = (nn.Conv2d, nn.Linear, CompactConv2d, CompactLinear)
SAME = (nn.Dropout, nn.Identity)  # in evaluation
PASSES = 2  # the error of a compact layer falls with the box that it makes


def steps(model: nn.Sequential, shape: tuple[int, ...]) -> Iterator[tuple[str, nn.Module, Step]]:
    """A float64 network's layers in order, those of nested ``nn.Sequential`` too; ``shape`` is one image's, [C, H, W].

    Raises:
        TypeError: a layer's bounds are not known here; the message names it.
        ValueError: a layer is set so that they do not hold.
    """
    x = next(model.parameters()).new_zeros(1, *shape)
    for name, layer in _flat(model):
        yield name, layer, _step(name, layer, x)
        if getattr(layer, "activation", None) == "relu":
            yield f"{name} relu", layer, Monotone(nn.ReLU())
        with torch.no_grad():
            x = layer(x)


def regions(path: Sequence[Step], start: Region, forget: Callable[[Region], Region]) -> list[Region]:
    """The region before every layer, after ``forget``, and after the last."""
    found = [start]
    for step in path:
        found[-1] = forget(found[-1])
        found.append(step.region(found[-1]))
    return found


def linearised(path: Sequence[Step], start: Region, slopes: Sequence[Slopes], size: Tensor) -> list[Region]:
    """The same, each box met with that of the first order and its error."""
    found, zero = [start], torch.zeros_like(start.center)
    error = Interval(zero, zero)
    for step, before, after in zip(path, slopes[:-1], slopes[1:], strict=True):
        region, previous = step.region(found[-1]), error
        for _ in range(PASSES):
            error = step.error(found[-1], region, previous, before, size)
            region = met(_first_order(region, error, after, size))
        found.append(region)
    return found


def margins(last: nn.Linear, labels: Tensor) -> Step:
    """The last layer as what the label's logit is ahead of every other: [N, F] to [N, classes - 1]."""
    others = (labels.unsqueeze(1) + torch.arange(1, last.out_features)) % last.out_features
    weight, bias = last.weight.detach(), None if last.bias is None else last.bias.detach()
    rows = Dense(weight[labels].unsqueeze(1) - weight[others])
    return weighted(last, rows, None if bias is None else bias[labels].unsqueeze(1) - bias[others])


def _flat(model: nn.Sequential, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, layer in model._modules.items():  # named_children() leaves out what stands in two places
        assert layer is not None
        if isinstance(layer, nn.Sequential) and _is(layer, nn.Sequential):
            yield from _flat(layer, f"{prefix}{name}.")
        else:
            yield prefix + name, layer


def _step(name: str, layer: nn.Module, x: Tensor) -> Step:
    if isinstance(layer, (nn.Conv2d, nn.Linear)) and _is(layer, *WEIGHTED):
        return weighted(layer, _rows(layer, x), None if layer.bias is None else layer.bias.detach())
    if isinstance(layer, nn.BatchNorm2d) and _is(layer, nn.BatchNorm2d):
        return BatchNorm(layer)
    if isinstance(layer, nn.MaxPool2d) and _is(layer, nn.MaxPool2d):
        return MaxPool(layer)
    if _is(layer, nn.ReLU, nn.Hardtanh, nn.Flatten, Center, *SAME):
        return Monotone(layer)
    raise TypeError(f"no bound is known of {name}, a {type(layer).__name__}")


def _is(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """A subclass may compute something else."""
    return type(module) in kinds


def _rows(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Rows:
    if isinstance(layer, nn.Conv2d):
        return Convolution(layer, (x.shape[2], x.shape[3]))
    if x.dim() != 2:
        raise ValueError(f"a linear layer must get one vector an image, [N, F], got {list(x.shape)}")
    return Dense(layer.weight.detach())


def _first_order(region: Region, error: Interval, slopes: Slopes, size: Tensor) -> Region:
    center, size = region.center, along(size, region.center)
    low = torch.maximum(region.low, center - size * slopes.fall + error.low)
    high = torch.minimum(region.high, center + size * slopes.rise + error.high)
    return region._replace(low=low, high=high)
