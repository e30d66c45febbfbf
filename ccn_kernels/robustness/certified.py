"""A radius that is proved: no image of [0, 1] within it, in L-infinity or L2, is given another class.

`docs/certified.md` has the theorems and what they are worth in numbers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .bounds import walk
from .bounds.regions import Region, Slopes, Step, along, around
from .bounds.slopes import batched, slopes

NORMS = ("linf", "l2")
METHODS: dict[str, Callable[[Region], Region]] = {
    "linearised": lambda region: region,
    "hybrid": lambda region: region,
    "interval": lambda region: region._replace(radius=torch.full_like(region.radius, math.inf)),
    "lipschitz": lambda region: _ball(region),
}
BATCH = 25
SMALLEST, HALVINGS = 1e-9, 14  # of the largest radius that is tried; 14 leave an uncertainty of 0.13 %


class Certifier:
    """A network whose bounds are ready; it shares nothing with the model. See :func:`certified_radius`."""

    def __init__(
        self, model: nn.Module, shape: tuple[int, ...], norm: str = "linf", method: str = "linearised"
    ) -> None:
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {NORMS}, got {norm!r}")
        if method not in METHODS:
            raise ValueError(f"method must be one of {tuple(METHODS)}, got {method!r}")
        if type(model) is not nn.Sequential:
            raise TypeError(f"bounds go through the layers of an nn.Sequential, got a {type(model).__name__}")
        *layers, (_, last, _) = walk.steps(copy.deepcopy(model).double().cpu().eval(), shape)
        if not isinstance(last, nn.Linear) or getattr(last, "activation", None) is not None:
            raise ValueError(f"a network must end in a linear layer without activation, got {last}")
        self.names, self.steps = [name for name, _, _ in layers], [step for _, _, step in layers]
        self.last, self.norm, self.method = last, norm, method

    @torch.no_grad()
    def radius(self, images: Tensor, labels: Tensor) -> Tensor:
        """As :func:`certified_radius`, which takes the images in batches."""
        most = 1.0 if self.norm == "linf" else math.sqrt(images[0].numel())
        path, slopes = self.path(labels), self.slopes(images, labels)

        def hold(size: Tensor) -> Tensor:
            return (self.regions(path, images, size, slopes)[-1].low > 0).all(1)

        fails = torch.full((len(images),), most, dtype=torch.float64)
        holds = SMALLEST * fails
        certain = hold(holds)
        for _ in range(HALVINGS):
            middle = (holds * fails).sqrt()
            held = hold(middle)
            holds, fails = torch.where(held, middle, holds), torch.where(held, fails, middle)
        return torch.where(certain, holds, 0.0)

    def path(self, labels: Tensor) -> list[Step]:
        """The layers, the last of which gives margins [N, classes - 1] over the labels' rivals."""
        return [*self.steps, walk.margins(self.last, labels)]

    def slopes(self, images: Tensor, labels: Tensor) -> list[Slopes] | None:
        """The first order of every layer's input, and of the margins, where the method has one. [N, ...] each"""
        if self.method != "linearised":
            return None
        pairs = zip(images.split(1), labels.split(1), strict=True)
        return batched([slopes(self.path(label), image, self.norm) for image, label in pairs])

    def regions(self, path: Sequence[Step], images: Tensor, size: Tensor, slopes: list[Slopes] | None) -> list[Region]:
        """Before every layer, and the margins, for all images within ``size`` [N]."""
        start = around(images, size, self.norm)
        if slopes is not None:
            return walk.linearised(path, start, slopes, size)
        return walk.regions(path, start, METHODS[self.method])


def certified_radius(
    model: nn.Module, images: Tensor, labels: Tensor, norm: str = "linf", *, method: str = "linearised"
) -> Tensor:
    """For each image a radius within which no image of [0, 1] is given another class, float64 [N].

    It holds of the network in exact arithmetic: float32 may err where two logits differ by its rounding. It is 0 for an
    image that is given another class already, or where nothing is proved.

    Args:
        model: an ``nn.Sequential`` that takes images in [0, 1] and ends in a linear layer; judged in evaluation mode.
        images: [N, C, H, W] in [0, 1].
        labels: [N].
        norm: "linf" or "l2".
        method: "interval" or "lipschitz" bounds; "hybrid" for the tighter of both everywhere; "linearised" for the
            tightest, which differentiates every activation by every pixel: a second an image of MNIST.

    Raises:
        TypeError: the model has a layer of which no bound is known; the message names it.
        ValueError: norm or method is unknown, images leave [0, 1], or a layer is set so that no bound holds.
    """
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(f"images must lie in [0, 1], got [{images.min():g}, {images.max():g}]")
    certifier = Certifier(model, tuple(images.shape[1:]), norm, method)
    images, labels = images.detach().cpu().double(), labels.cpu()
    batches = zip(images.split(BATCH), labels.split(BATCH), strict=True)
    return torch.cat([certifier.radius(*batch) for batch in batches])


def _ball(region: Region) -> Region:
    reach = along(region.radius, region.center)
    return region._replace(low=region.center - reach, high=region.center + reach)
