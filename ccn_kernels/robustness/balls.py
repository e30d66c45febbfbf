"""Balls of a norm around images: what an attack may change, and how it moves inside. Images are [N, C, H, W]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NORMS = ("linf", "l2")
SLACK = 1e-4  # relative; float32 sums of squares


def check(epsilons: tuple[float, ...], norm: str) -> None:
    """Raises ValueError where the norm is unknown or the radii are not one or more numbers that it can have."""
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {NORMS}, got {norm!r}")
    most = 1.0 if norm == "linf" else math.inf
    if not epsilons or not all(0 <= epsilon <= most and epsilon < math.inf for epsilon in epsilons):
        wanted = "in [0, 1]" if norm == "linf" else "of 0 or more, and finite"
        raise ValueError(f"epsilons must be one or more numbers {wanted}, got {epsilons}")


def size(change: Tensor, norm: str) -> Tensor:
    """The norm of each image's change [N]."""
    flat = change.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def inside(images: Tensor, attacked: Tensor, epsilon: Tensor | float, norm: str) -> Tensor:
    """``attacked``, brought back to within ``epsilon`` of the images and into [0, 1]."""
    change = attacked - images
    if norm == "linf":
        change = change.clamp(-epsilon, epsilon)  # type: ignore[arg-type]
    else:
        change = change * (epsilon / _each(size(change, norm).clamp(min=1e-12))).clamp(max=1)
    return (images + change).clamp(0, 1)


def direction(gradient: Tensor, norm: str) -> Tensor:
    """The step of size 1 along which a linear function with this gradient grows most; 0 where the gradient is."""
    if norm == "linf":
        return gradient.sign()
    return gradient / _each(size(gradient, norm).clamp(min=1e-12))


def start(images: Tensor, epsilon: Tensor | float, norm: str) -> Tensor:
    """A random place on the border of each image's ball, or nearer where [0, 1] ends before it."""
    noise = torch.rand_like(images) * 2 - 1 if norm == "linf" else torch.randn_like(images)
    return inside(images, images + epsilon * noise / _each(size(noise, norm)), epsilon, norm)


def outside(images: Tensor, attacked: Tensor, epsilon: float, norm: str) -> bool:
    """Whether anything left [0, 1] or the ball, by more than rounding."""
    far = size(attacked - images, norm) > epsilon * (1 + SLACK) + 1e-6
    return bool(far.any() or attacked.min() < 0 or attacked.max() > 1)


def _each(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
