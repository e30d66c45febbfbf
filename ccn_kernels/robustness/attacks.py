"""Attacks, by Foolbox where it has them. Each is a value with settings; called on a batch, it says what became of it.

Models take images in [0, 1] and return logits; what an attack makes of an image stays in [0, 1].
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # foolbox imports GitPython, which wants a git program
import foolbox

from .deepfool2018 import ClippedDeepFool
from .precision import ieee

GPU_BATCHES = 4  # times a CPU's
Outcome = dict[str, Tensor]  # each [N, ...]


class Attack(Protocol):
    """``outcome["fooled"]`` is [N, epsilons] for attacks of a given size, [N] for those that look for the smallest.

    ``batch_size`` is for images of 32x32: it is smaller where they are larger.
    """

    @property
    def name(self) -> str: ...

    @property
    def batch_size(self) -> int: ...

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Outcome: ...


SomeAttack = TypeVar("SomeAttack", bound=Attack)


@dataclass(frozen=True)
class FGSM:
    """The fast gradient sign method (Goodfellow et al., 2015); epsilons are L-infinity radii in [0, 1]."""

    epsilons: tuple[float, ...]
    batch_size: int = 250
    name: ClassVar[str] = "fgsm"

    def __post_init__(self) -> None:
        _check(self.epsilons)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Outcome:
        _, fooled = run_foolbox(foolbox.attacks.FGSM(), model, images, labels, list(self.epsilons))
        return {"fooled": fooled.T}


@dataclass(frozen=True)
class PGD:
    """L-infinity projected gradient descent from a random start (Madry et al., 2018); epsilons in [0, 1]."""

    epsilons: tuple[float, ...]
    steps: int = 20
    batch_size: int = 250
    name: ClassVar[str] = "pgd"

    def __post_init__(self) -> None:
        _check(self.epsilons)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Outcome:
        attack = foolbox.attacks.LinfPGD(steps=self.steps, rel_stepsize=2.5 / self.steps)
        _, fooled = run_foolbox(attack, model, images, labels, list(self.epsilons))
        return {"fooled": fooled.T}


@dataclass(frozen=True)
class DeepFool:
    """DeepFool in L2 (Moosavi-Dezfooli et al., 2016), and the residue ratio ``||x' - x|| / ||x||`` of equation 8.

    Args:
        form: "today", or "2018": clipped to [0, 1] after every step, which stalls at the border of the box.
    """

    form: str = "today"
    steps: int = 50
    batch_size: int = 100
    name: ClassVar[str] = "deepfool"

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Outcome:
        attack: Any
        if self.form == "2018":
            attack = ClippedDeepFool(steps=2 * self.steps, overshoot=0.05)  # the numbers of its time
        else:
            attack = foolbox.attacks.L2DeepFoolAttack(steps=self.steps, loss="logits")
        attacked, fooled = run_foolbox(attack, model, images, labels, None)
        return {"fooled": fooled, "ratio": _norm(attacked - images) / _norm(images)}


@dataclass(frozen=True)
class CarliniWagner:
    """Carlini and Wagner's L2 attack with the paper's settings: towards the second highest class, kappa 0."""

    steps: int = 1000
    search_steps: int = 6
    stepsize: float = 1e-2
    initial_const: float = 0.1
    batch_size: int = 100
    name: ClassVar[str] = "cw"

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Outcome:
        with torch.no_grad():
            logits = model(images)
        right, target = logits.argmax(1) == labels, logits.topk(2).indices[:, 1]
        fooled, distance = torch.zeros_like(right), images.new_zeros(len(images))
        if right.any():
            attack = foolbox.attacks.L2CarliniWagnerAttack(
                binary_search_steps=self.search_steps,
                steps=self.steps,
                stepsize=self.stepsize,
                confidence=0,
                initial_const=self.initial_const,
                abort_early=False,  # Foolbox judges the whole batch's progress: one image would stop its neighbours
            )
            criterion = foolbox.criteria.TargetedMisclassification(target[right])
            attacked, success = run_foolbox(attack, model, images[right], criterion, None)
            black = attacked.flatten(1).amax(1) == 0  # what foolbox returns where it found nothing
            fooled[right], distance[right] = success & ~black, _norm(attacked - images[right])
        return {"fooled": fooled, "distance": distance}


@dataclass(frozen=True)
class Transfer:
    """FGSM's images for another network (tables 6 to 8)."""

    source: nn.Module = field(repr=False, compare=False)
    digest: str  # of its weights
    epsilons: tuple[float, ...]
    batch_size: int = 250
    name: ClassVar[str] = "transfer"

    def __post_init__(self) -> None:
        _check(self.epsilons)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Outcome:
        crafted, _ = run_foolbox(foolbox.attacks.FGSM(), self.source, images, labels, list(self.epsilons))
        fooled = [predictions(model, attacked) != labels for attacked in crafted]
        agrees = predictions(self.source, images) == predictions(model, images)
        return {"fooled": torch.stack(fooled, dim=1), "agrees": agrees}


def by_name(name: str, epsilons: tuple[float, ...] = (), cw_steps: int = 1000) -> Attack:
    """A white-box attack: "fgsm" and "pgd" of these sizes, "deepfool", "deepfool_2018" or "cw"."""
    made: dict[str, Callable[[], Attack]] = {
        "fgsm": lambda: FGSM(epsilons),
        "pgd": lambda: PGD(epsilons),
        "deepfool": DeepFool,
        "deepfool_2018": lambda: DeepFool("2018"),
        "cw": lambda: CarliniWagner(cw_steps),
    }
    return made[name]()


def sized_for(device: torch.device | str, attack: SomeAttack) -> SomeAttack:
    """The attack, in batches that keep the device busy."""
    if torch.device(device).type == "cpu":
        return attack
    return replace(attack, batch_size=GPU_BATCHES * attack.batch_size)  # type: ignore[type-var]


def adversarial_images(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """FGSM's images [N, C, H, W] at one epsilon."""
    with exact(model):
        return run_foolbox(foolbox.attacks.FGSM(), model, images, labels, epsilon)[0]


def predictions(model: nn.Module, images: Tensor) -> Tensor:
    """Predicted classes [N]."""
    with torch.no_grad():
        return model(images).argmax(1)


def gradient_is_zero(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """For each image, whether the loss's gradient there is exactly zero: a sign attack then does nothing. [N]"""
    images = images.clone().requires_grad_()
    loss = F.cross_entropy(model(images), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images)
    return gradient.flatten(1).abs().amax(1) == 0


@contextmanager
def exact(*models: nn.Module) -> Iterator[None]:
    """Gradients of images alone, and IEEE arithmetic: attacks stop right behind a border."""
    weights = [weight for model in models for weight in model.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        with ieee():
            yield
    finally:
        for weight in weights:
            weight.requires_grad_()


def _check(epsilons: Sequence[float]) -> None:
    if not epsilons or not all(0 <= epsilon <= 1 for epsilon in epsilons):
        raise ValueError(f"epsilons must be one or more numbers in [0, 1], got {epsilons}")


def run_foolbox(attack: Any, model: nn.Module, images: Tensor, criterion: Any, epsilons: Any) -> tuple[Any, Tensor]:
    """Attacked images [N, C, H, W] (a list of them for several epsilons), and whether each fools the model."""
    target = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
    _, attacked, fooled = attack(target, images, criterion, epsilons=epsilons)
    for each in attacked if isinstance(attacked, list) else [attacked]:
        if not (each.min() >= 0 and each.max() <= 1):
            raise RuntimeError(f"{attack} left [0, 1]: its images lie in [{each.min():g}, {each.max():g}]")
    return attacked, fooled


def _norm(images: Tensor) -> Tensor:
    return images.flatten(1).norm(dim=1)
