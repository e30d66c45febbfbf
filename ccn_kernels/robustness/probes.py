"""What gradients are worth: measured on a batch of images [N, C, H, W] and labels [N], no verdict yet."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from . import losses
from .attacks import gradient_is_zero, predictions
from .evaluation import percent
from .sized import OneStep

SCALES = (0.01, 0.1, 1.0, 10.0, 100.0)
STEP = 1e-5  # of the finite differences, which are float64's
DIRECTIONS = 4


class Scaled(nn.Module):
    """A network whose logits are multiplied: the same predictions, another loss."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * self.model(images)


def in_float64(model: nn.Module) -> nn.Module | None:
    """A copy in float64; None where the model cannot be had in it."""
    try:
        wide = copy.deepcopy(model).double()
        parameter = next(iter(wide.parameters()), None)
        return wide if parameter is None or parameter.dtype == torch.float64 else None
    except (RuntimeError, TypeError, NotImplementedError):
        return None


def zero_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share in percent whose cross-entropy has a gradient of exactly zero."""
    return percent(gradient_is_zero(model, images, labels))


def margins(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The right class's logit less the best other one, of the images that are right."""
    with torch.no_grad():
        found = -losses.margin(model(images), labels, labels)
    return found[found > 0]


def one_step(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, loss: str = "ce") -> float:
    """Accuracy in percent under FGSM."""
    fooled = OneStep((epsilon,), loss=loss)(model, images, labels)["fooled"][:, 0]
    return percent((predictions(model, images) == labels) & ~fooled)


def one_step_in_float64(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> float | None:
    """The same, its gradient taken in float64, judged in the network's own type; None where there is no such copy."""
    wide = in_float64(model)
    if wide is None:
        return None
    try:
        crafted = OneStep((epsilon,)).craft(wide, images.double(), labels, epsilon).to(images)
    except RuntimeError:  # of a network that narrows inside
        return None
    held = (predictions(model, crafted.clamp(0, 1)) == labels) & (predictions(model, images) == labels)
    return percent(held)


def by_scale(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> dict[float, float]:
    """Accuracy in percent under FGSM with the logits multiplied: predictions do not change, only the loss does."""
    return {factor: one_step(Scaled(model, factor), images, labels, epsilon) for factor in SCALES}


def gradient_error(model: nn.Module, images: Tensor, labels: Tensor) -> float | None:
    """How far the margin's gradient is from finite differences in float64: the median relative error over images and
    random directions; None where the model cannot be had in float64. 1 where the gradient says nothing.
    """
    wide = in_float64(model)
    if wide is None:
        return None
    generator = torch.Generator().manual_seed(0)
    off = torch.rand(images.shape, generator=generator).to(images)
    images = (0.98 * images + 0.02 * off).requires_grad_()  # off the ties of max pooling on an even ground
    value = losses.margin(model(images), labels, labels)
    (gradient,) = torch.autograd.grad(value.sum(), images)
    images, errors = images.detach().double(), []
    for _ in range(DIRECTIONS):
        way = torch.randn(images.shape, generator=generator, dtype=torch.float64).to(images.device)
        try:
            with torch.no_grad():
                ends = [losses.margin(wide(images + side * STEP * way), labels, labels) for side in (1, -1)]
        except RuntimeError:
            return None
        measured = (ends[0] - ends[1]) / (2 * STEP)
        told = (gradient.double() * way).flatten(1).sum(1)
        largest = torch.maximum(measured.abs(), told.abs()).clamp(min=1e-12)
        errors.append(torch.where((measured == 0) & (told == 0), 1.0, (measured - told).abs() / largest))
    return torch.cat(errors).median().item()
