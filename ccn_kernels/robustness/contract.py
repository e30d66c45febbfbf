"""What a network must be for its numbers to mean anything: found out on a few images, before hours are spent."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

BETTER, ENOUGH = 10.0, 50.0  # points by which another input range must win, to this accuracy, to be named
_ALL = (0, 2, 3)  # but channels
RANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "[0, 255]": lambda images: images * 255,
    "[-1, 1]": lambda images: images * 2 - 1,
    "[-0.5, 0.5]": lambda images: images - 0.5,
    "mean 0 and deviation 1": lambda images: (images - images.mean(_ALL, True)) / images.std(_ALL, keepdim=True),
}


def check(model: nn.Module, images: Tensor, labels: Tensor, classes: int) -> None:
    """Passes where the model takes images [N, C, H, W] in [0, 1] and returns logits [N, K]: RobustBench's conventions.

    Raises:
        ValueError: it does not; the message says how, and what to do.
    """
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(f"images must lie in [0, 1], got [{images.min():g}, {images.max():g}]: scale them to it")
    logits = _logits(model, images, classes)
    _finite(logits)
    _not_probabilities(logits)
    _repeatable(model, images, logits)
    _alone(model, images, logits)
    _differentiable(model, images)
    _in_range(model, images, labels)


def _logits(model: nn.Module, images: Tensor, classes: int) -> Tensor:
    try:
        with torch.no_grad():
            logits = model(images)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shape = "x".join(map(str, images.shape[1:]))
        raise ValueError(f"the model does not run on images of {shape} ({images.dtype}): {error}") from error
    if not isinstance(logits, Tensor):
        raise ValueError(f"the model must return logits, a tensor alone, got {type(logits).__name__}")
    if logits.dim() != 2 or len(logits) != len(images):
        raise ValueError(f"logits must be [{len(images)}, classes], got {list(logits.shape)}")
    if logits.shape[1] != classes:
        raise ValueError(f"the model has {logits.shape[1]} classes, the data set {classes}: one of them is another's")
    return logits


def _finite(logits: Tensor) -> None:
    wrong = ~logits.isfinite().all(1)
    if wrong.any():
        raise ValueError(f"logits must be finite: NaN or infinite for {int(wrong.sum())} of {len(wrong)} images")


def _not_probabilities(logits: Tensor) -> None:
    if (logits >= 0).all() and (logits.sum(1) - 1).abs().max() < 1e-3:
        raise ValueError(
            "the model returns probabilities (rows in [0, 1] that sum to 1), logits are needed: a softmax saturates, "
            "and its gradients vanish where it is sure. Leave the last softmax out."
        )


def _repeatable(model: nn.Module, images: Tensor, logits: Tensor) -> None:
    with torch.no_grad():
        off = _off(model(images), logits)
    if off > 1e-3:
        raise ValueError(
            f"the model is random at test time: two calls differ by {off:.2g} of the logits. One call's gradient says "
            "little about the next; put it into evaluation mode, fix its noise, or attack its expectation (EOT)."
        )


def _alone(model: nn.Module, images: Tensor, logits: Tensor) -> None:
    with torch.no_grad():
        off = _off(model(images[:1]), logits[:1])
    if off > 1e-2:
        raise ValueError(
            f"an image's logits depend on its batch: alone they differ by {off:.2g}. Normalise with what was kept in "
            "training (evaluation mode), or attacks on a batch are no attacks on an image."
        )


def _differentiable(model: nn.Module, images: Tensor) -> None:
    if gradient(model, images[:2]) is None:
        raise ValueError(
            "logits carry no gradient back to the images (a threshold, a detach, NumPy or no_grad inside?): "
            "attacks by gradients would do nothing, and the network would look robust"
        )


def gradient(model: nn.Module, images: Tensor) -> Tensor | None:
    """Of the logits' sum by the images; None where there is none."""
    images = images.clone().requires_grad_()
    logits = model(images)
    return torch.autograd.grad(logits.sum(), images, allow_unused=True)[0] if logits.requires_grad else None


def _in_range(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Whether another range of inputs would do far better."""
    found = {"[0, 1]": _accuracy(model, images, labels)}
    for name, scaled in RANGES.items():
        found[name] = _accuracy(model, scaled(images), labels)
    best = max(found, key=lambda name: found[name])
    if found[best] >= max(found["[0, 1]"] + BETTER, ENOUGH):
        raise ValueError(
            f"the model seems to want images in {best}: it gets {found[best]:.0f} % of {len(images)} right there, "
            f"{found['[0, 1]']:.0f} % in [0, 1]. Put the scaling inside the model: attacks keep to [0, 1]."
        )


def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return 100 * (model(images).argmax(1) == labels).double().mean().item()


def _off(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest logit."""
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()
