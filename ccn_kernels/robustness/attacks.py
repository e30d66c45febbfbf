"""White-box attacks by Foolbox. An image that is wrong before the attack stays an error, whatever the attack does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # foolbox imports GitPython, which wants a git program
import foolbox

PGD_STEPS = 20


class AttackResult(NamedTuple):
    """Accuracy in percent for each epsilon, and what share of images had an input gradient of exactly zero."""

    accuracy: dict[float, float]
    zero_gradients: float


def fgsm() -> foolbox.attacks.base.Attack:
    """The fast gradient sign method (Goodfellow et al., 2015)."""
    return foolbox.attacks.FGSM()


def pgd(steps: int = PGD_STEPS) -> foolbox.attacks.base.Attack:
    """L-infinity projected gradient descent from a random start (Madry et al., 2018)."""
    return foolbox.attacks.LinfPGD(steps=steps, rel_stepsize=2.5 / steps)


def accuracy_under(
    attack: foolbox.attacks.base.Attack,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilons: Sequence[float],
    *,
    batch_size: int = 250,
    title: str = "attack",
) -> AttackResult:
    """Accuracy of ``model`` under an attack, for each epsilon (L-infinity radius; images are in [0, 1])."""
    target = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
    right = torch.zeros(len(epsilons), dtype=torch.long)
    zero = 0
    pairs = list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
    for x, y in tqdm(pairs, desc=title, unit="batch", leave=False):
        before = predictions(model, x) == y
        _, _, success = attack(target, x, y, epsilons=list(epsilons))  # [epsilons, N]
        right += (before & ~success).sum(1)
        zero += int(_gradient_is_zero(model, x, y).sum())
    percent = {epsilon: 100 * count / len(labels) for epsilon, count in zip(epsilons, right.tolist(), strict=True)}
    return AttackResult(percent, zero / len(labels))


def adversarial_images(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """FGSM's images [N, C, H, W] at one epsilon, in [0, 1]."""
    target = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
    return fgsm()(target, images, labels, epsilons=epsilon)[1]


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 500) -> float:
    """Share of images, in percent, that the model gets right."""
    hits = [predictions(model, x) == y for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True)]
    return 100 * torch.cat(hits).float().mean().item()


def predictions(model: nn.Module, images: Tensor) -> Tensor:
    """Predicted classes [N]."""
    with torch.no_grad():
        return model(images).argmax(1)


def _gradient_is_zero(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """For each image, whether the loss's gradient there is exactly zero: a sign attack then does nothing. [N]"""
    images = images.clone().requires_grad_()
    loss = F.cross_entropy(model(images), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images)
    return gradient.flatten(1).abs().amax(1) == 0
