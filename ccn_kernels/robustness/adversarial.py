"""Adversarial training's images: FGSM's beside the clean ones (table 4), or projected gradient descent's in their
place (Madry et al., 2018). Images are [N, C, H, W] in [0, 1].

Not by Foolbox, which asks the device for values: a training step must not wait for it, and is captured as a graph.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import balls
from .config import TrainConfig

REACH = 2.5  # radii that all steps together could go


def radius(config: TrainConfig, step: int, steps: int) -> float:
    """Epsilon of a step."""
    return config.adversarial_epsilon * min(1.0, (step + 1) / max(1.0, config.adversarial_warmup * steps))


def batch(
    model: nn.Module, images: Tensor, labels: Tensor, config: TrainConfig, epsilon: Tensor
) -> tuple[Tensor, Tensor]:
    """The images that a step trains on, and their labels; epsilon is a scalar."""
    if not config.adversarial_epsilon:
        return images, labels
    if config.adversarial_steps:
        return pgd_images(model, images, labels, epsilon, config.adversarial_steps), labels
    return torch.cat([images, fgsm_images(model, images, labels, epsilon)]), labels.repeat(2)


def fgsm_images(model: nn.Module, images: Tensor, labels: Tensor, epsilon: Tensor | float) -> Tensor:
    """One signed gradient step of length epsilon."""
    return (images + epsilon * _direction(model, images, labels)).clamp(0, 1)


def pgd_images(model: nn.Module, images: Tensor, labels: Tensor, epsilon: Tensor, steps: int) -> Tensor:
    """Signed gradient steps from a random place in the L-infinity ball of radius epsilon, and inside of it."""
    attacked = balls.start(images, epsilon, "linf")
    for _ in range(steps):
        moved = attacked + REACH * epsilon / steps * _direction(model, attacked, labels)
        attacked = balls.inside(images, moved, epsilon, "linf")
    return attacked


def _direction(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The sign of the loss's gradient, in float32. In training mode batch normalisation counts these images, too."""
    images = images.detach().requires_grad_()
    with torch.autocast(images.device.type, enabled=False):
        loss = F.cross_entropy(model(images), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images)
    return gradient.sign()
