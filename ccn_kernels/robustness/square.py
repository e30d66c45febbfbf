"""Square (Andriushchenko et al., 2020): random squares, kept where the margin falls. It sees logits, no gradient.

ART's puts one square on all images of a batch at once and asks the model three times a step; this one draws a square
for each image and asks once. A test holds it to ART's on the same network. In L2 its bumps are flat, not pyramids.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import balls
from .losses import margin

SHARE = 0.8  # of the image's pixels in the first squares
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries


def square(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, *, norm: str, queries: int) -> Tensor:
    """Images [N, C, H, W] within ``epsilon`` after so many queries each, or fewer where the model is fooled."""
    result, remaining = images.clone(), torch.arange(len(images), device=images.device)
    begin = _stripes if norm == "linf" else _tiles
    propose = _repainted if norm == "linf" else _moved
    here = begin(images, epsilon)
    values = _margins(model, here, labels)
    result[:] = here
    for query in range(1, queries):
        if not (holds := values < 0).all():
            images, labels, here, values = images[holds], labels[holds], here[holds], values[holds]
            remaining = remaining[holds]
        if not len(remaining):
            break
        tried = propose(images, here, epsilon, _side(query / queries, images.shape))
        found = _margins(model, tried, labels)
        better = found > values
        here, values = torch.where(better.view(-1, 1, 1, 1), tried, here), torch.where(better, found, values)
        result[remaining] = here
    return result


def _margins(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return margin(model(images), labels, labels)


def _side(progress: float, shape: torch.Size) -> int:
    """Of the square: smaller and smaller."""
    share = SHARE / 2 ** sum(10_000 * progress > halving for halving in HALVINGS)
    return max(1, min(round((share * shape[2] * shape[3]) ** 0.5), min(shape[2:]) - 1))


def _signs(images: Tensor, *shape: int) -> Tensor:
    return torch.randint(2, shape, device=images.device).to(images) * 2 - 1


def _squares(images: Tensor, side: int) -> Tensor:
    """A mask [N, 1, H, W] with one square an image."""
    count, _, height, width = images.shape
    masks = []
    for length in (height, width):
        first = torch.randint(length - side + 1, (count, 1), device=images.device)
        place = torch.arange(length, device=images.device)
        masks.append((place >= first) & (place < first + side))  # [N, length]
    return masks[0][:, None, :, None] & masks[1][:, None, None, :]


def _stripes(images: Tensor, epsilon: float) -> Tensor:
    count, channels, _, width = images.shape
    return (images + epsilon * _signs(images, count, channels, 1, width)).clamp(0, 1)


def _repainted(images: Tensor, here: Tensor, epsilon: float, side: int) -> Tensor:
    """One square of each image in a colour at the border of its ball."""
    colour = epsilon * _signs(images, len(images), images.shape[1], 1, 1)
    return torch.where(_squares(images, side), (images + colour).clamp(0, 1), here)


def _tiles(images: Tensor, epsilon: float) -> Tensor:
    """A chessboard of random signs, five tiles wide."""
    count, channels, height, width = images.shape
    signs = _signs(images, count, channels, 5, 5)
    noise = torch.nn.functional.interpolate(signs, (height, width), mode="nearest")
    return balls.inside(images, images + epsilon * noise / balls.size(noise, "l2").view(-1, 1, 1, 1), epsilon, "l2")


def _moved(images: Tensor, here: Tensor, epsilon: float, side: int) -> Tensor:
    """Takes the change out of one square, and puts all that the ball then leaves into another, as one bump."""
    change = here - images
    source, target = _squares(images, side), _squares(images, side)
    change = torch.where(source, 0.0, change)
    kept = torch.where(target, 0.0, change)
    room = (epsilon**2 - balls.size(kept, "l2") ** 2).clamp(min=0).sqrt().view(-1, 1, 1, 1)
    bump = target * _signs(images, len(images), images.shape[1], 1, 1) + 0.5 * change.sign() * target
    bump = bump / balls.size(bump, "l2").clamp(min=1e-12).view(-1, 1, 1, 1)
    return balls.inside(images, images + kept + room * bump, epsilon, "l2")
