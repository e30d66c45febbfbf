"""Attacks of a given size, in either norm, and the two that any other must beat: one step, and random noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from . import balls, losses
from .attacks import Outcome, predictions


@dataclass(frozen=True)
class Sized:
    """An attack that may change an image by ``epsilon`` at most, in "linf" or "l2".

    Raises:
        ValueError: the norm is unknown, or the radii are none that it has.
    """

    epsilons: tuple[float, ...]
    norm: str = "linf"
    batch_size: int = field(default=250, kw_only=True)
    kind: ClassVar[str]

    def __post_init__(self) -> None:
        balls.check(self.epsilons, self.norm)

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.norm}"

    @property
    def title(self) -> str:
        return self.kind

    def craft(self, model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
        """Images [N, C, H, W] within ``epsilon`` of those given, in [0, 1]."""
        raise NotImplementedError

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Outcome:
        fooled = []
        for epsilon in self.epsilons:
            crafted = self.craft(model, images, labels, epsilon)
            if len(images) and balls.outside(images, crafted, epsilon, self.norm):
                raise RuntimeError(f"{self.name} left [0, 1] or its ball of {epsilon:g}: a fault of the attack")
            fooled.append(predictions(model, crafted) != labels)  # what it says of itself does not count
        return {"fooled": torch.stack(fooled, dim=1)}


@dataclass(frozen=True)
class OneStep(Sized):
    """The whole radius along the loss's gradient: FGSM, on any loss (Goodfellow et al., 2015)."""

    loss: str = "ce"
    kind: ClassVar[str] = "fgsm"

    @property
    def title(self) -> str:
        return "FGSM" if self.loss == "ce" else f"FGSM on the {self.loss}"

    def craft(self, model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
        images = images.clone().requires_grad_()
        value = losses.LOSSES[self.loss](model(images), labels, labels)
        (gradient,) = torch.autograd.grad(value.sum(), images)
        images = images.detach()
        return balls.inside(images, images + epsilon * balls.direction(gradient, self.norm), epsilon, self.norm)


@dataclass(frozen=True)
class Noise(Sized):
    """Random places on the ball's border, no gradient: what any attack must beat."""

    draws: int = 20
    kind: ClassVar[str] = "noise"

    @property
    def title(self) -> str:
        return f"random noise, the worst of {self.draws}"

    def craft(self, model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
        return first_to_fool(
            lambda chosen: balls.start(images[chosen], epsilon, self.norm), self.draws, model, images, labels
        )


def first_to_fool(
    craft: Callable[[Tensor], Tensor], turns: int, model: nn.Module, images: Tensor, labels: Tensor
) -> Tensor:
    """For each image the first of several tries that fools the model; later tries see only what holds yet.

    Args:
        craft: takes indices into the images, and gives one attacked image for each.
    """
    crafted = images.clone()
    holds = torch.arange(len(images), device=images.device)
    for _ in range(turns):
        if not len(holds):
            break
        crafted[holds] = craft(holds)
        holds = holds[predictions(model, crafted[holds]) == labels[holds]]
    return crafted
