"""Auto-PGD (Croce and Hein, 2020): projected gradients with momentum, whose step halves where it stops helping.

ART's needs several passes a step and leaves the gradient to NumPy; this one takes one pass a step. A test holds it to
ART's on the same network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import balls
from .losses import Loss

MOMENTUM = 0.75  # share of a new step
ENOUGH = 0.75  # share of the steps since the last checkpoint that must have helped


def apgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    norm: str,
    loss: Loss,
    steps: int,
    targets: Tensor | None = None,
) -> Tensor:
    """Images [N, C, H, W] within ``epsilon`` that the model gets wrong, and the unchanged ones where none was found.

    Args:
        targets: classes [N] for a loss that aims.
    """
    result, remaining = images.clone(), torch.arange(len(images), device=images.device)
    climb = _Climb.begin(model, images, labels, labels if targets is None else targets, epsilon, norm, loss)
    checks, since = _checkpoints(steps), 0
    for step in range(steps):
        if step:
            climb.move(epsilon, norm, MOMENTUM if step > 1 else 1.0)
            climb.look(model, loss)
        result[remaining[climb.wrong]] = climb.here[climb.wrong]
        if step in checks:
            climb.adapt(step - since)
            since = step
            if climb.wrong.all():
                break
            remaining, climb = remaining[~climb.wrong], climb.only(~climb.wrong)
    return result


@dataclass
class _Climb:
    """Where each image has come to."""

    images: Tensor  # [n, C, H, W], as are here, before, gradient, best, best_gradient
    labels: Tensor  # [n], as are all below
    targets: Tensor
    here: Tensor
    before: Tensor
    gradient: Tensor
    best: Tensor
    best_gradient: Tensor
    value: Tensor
    best_value: Tensor
    last_best: Tensor  # at the last checkpoint
    step: Tensor
    helped: Tensor  # steps since then
    halved: Tensor  # whether it was there
    wrong: Tensor  # whether the network has erred on the way

    @classmethod
    def begin(cls, model: nn.Module, images: Tensor, labels: Tensor, targets: Tensor, epsilon: float, norm: str,
              loss: Loss) -> _Climb:  # fmt: skip
        here = balls.start(images, epsilon, norm)
        value, gradient, wrong = _gradient(model, here, labels, targets, loss)
        step, none = torch.full_like(value, 2 * epsilon), torch.zeros_like(wrong)
        return cls(images, labels, targets, here, here, gradient, here, gradient, value, value, value, step,
                   torch.zeros_like(value), none, wrong)  # fmt: skip

    def move(self, epsilon: float, norm: str, share: float) -> None:
        """This share of a step along the gradient; the rest is the last move once more."""
        ahead = self.here + self.step.view(-1, 1, 1, 1) * balls.direction(self.gradient, norm)
        ahead = balls.inside(self.images, ahead, epsilon, norm)
        moved = self.here + share * (ahead - self.here) + (1 - share) * (self.here - self.before)
        self.before, self.here = self.here, balls.inside(self.images, moved, epsilon, norm)

    def look(self, model: nn.Module, loss: Loss) -> None:
        """The loss and its gradient at the new place; where a network has erred once, its image stays there."""
        self.here = torch.where(self.wrong.view(-1, 1, 1, 1), self.before, self.here)
        value, self.gradient, wrong = _gradient(model, self.here, self.labels, self.targets, loss)
        self.helped = self.helped + (value > self.value)
        better = value > self.best_value
        chosen = better.view(-1, 1, 1, 1)
        self.best = torch.where(chosen, self.here, self.best)
        self.best_gradient = torch.where(chosen, self.gradient, self.best_gradient)
        self.value, self.best_value, self.wrong = value, torch.where(better, value, self.best_value), self.wrong | wrong

    def adapt(self, steps: int) -> None:
        """Halves the steps that no longer help, and puts their images back to the best place."""
        stuck = (self.helped <= ENOUGH * steps) | (~self.halved & (self.best_value == self.last_best))
        self.step, chosen = torch.where(stuck, self.step / 2, self.step), (stuck & ~self.wrong).view(-1, 1, 1, 1)
        self.here = torch.where(chosen, self.best, self.here)
        self.before = torch.where(chosen, self.best, self.before)
        self.gradient = torch.where(chosen, self.best_gradient, self.gradient)
        self.helped, self.halved, self.last_best = torch.zeros_like(self.helped), stuck, self.best_value

    def only(self, chosen: Tensor) -> _Climb:
        return _Climb(**{name: part[chosen] for name, part in vars(self).items()})


def _gradient(model: nn.Module, images: Tensor, labels: Tensor, targets: Tensor, loss: Loss) -> tuple[Tensor, ...]:
    """The loss [n], its gradient [n, C, H, W], and whether the model errs [n]."""
    images = images.detach().requires_grad_()
    logits = model(images)
    value = loss(logits, labels, targets)
    (gradient,) = torch.autograd.grad(value.sum(), images)
    return value.detach(), gradient, logits.detach().argmax(1) != labels


def _checkpoints(steps: int) -> set[int]:
    """After 22 % of the steps, then after ever fewer, 6 % at least; and at the end, to leave."""
    found, gap, share = [], 0.22, 0.22
    while share < 1:
        found.append(max(1, int(share * steps)))
        gap = max(gap - 0.03, 0.06)
        share += gap
    return {*found}
