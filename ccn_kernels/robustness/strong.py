"""The stronger attacks that a claim must survive: gradients with restarts, Auto-PGD, black boxes.

Those of a given size are seen by no image that a smaller radius fooled already (:mod:`.worst` sees to that).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import eagerpy
import foolbox
import torch
from torch import Tensor, nn

from . import balls, losses
from .apgd import apgd
from .attacks import exact, run_foolbox
from .sized import Sized, first_to_fool
from .square import square

_PGD = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}


@dataclass(frozen=True)
class RestartedPGD(Sized):
    """Foolbox's PGD from random starts, on cross-entropy or the margin (Madry et al., 2018)."""

    loss: str = "ce"
    steps: int = 20
    restarts: int = 1

    @property
    def name(self) -> str:
        return f"pgd-{self.loss}-{self.norm}"

    @property
    def title(self) -> str:
        return f"PGD-{self.steps}" + (" on the margin" if self.loss == "margin" else "") + (
            f", {self.restarts} starts" if self.restarts > 1 else "")  # fmt: skip

    def craft(self, model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
        attack = _pgd(self.norm, self.loss, self.steps)

        def once(chosen: Tensor) -> Tensor:
            return run_foolbox(attack, model, images[chosen], labels[chosen], epsilon)[0]

        crafted = first_to_fool(once, self.restarts, model, images, labels)
        return balls.inside(images, crafted, epsilon, self.norm)  # its L2 steps over by rounding


@dataclass(frozen=True)
class APGD(Sized):
    """Auto-PGD on cross-entropy or on the ratio of logit differences (Croce and Hein, 2020)."""

    loss: str = "ce"
    steps: int = 50
    restarts: int = 1

    @property
    def name(self) -> str:
        return f"apgd-{self.loss}-{self.norm}"

    @property
    def title(self) -> str:
        return f"APGD-{self.loss.upper()}"

    def craft(self, model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
        def once(chosen: Tensor) -> Tensor:
            loss = losses.LOSSES[self.loss]
            return apgd(model, images[chosen], labels[chosen], epsilon, norm=self.norm, loss=loss, steps=self.steps)

        return first_to_fool(once, self.restarts, model, images, labels)


@dataclass(frozen=True)
class TargetedAPGD(Sized):
    """Auto-PGD towards each of the likeliest wrong classes in turn, on the targeted ratio (Croce and Hein, 2020)."""

    targets: int = 9  # AutoAttack's
    steps: int = 30
    kind: ClassVar[str] = "apgd-t"

    @property
    def title(self) -> str:
        return f"APGD-T, {self.targets} targets"

    def craft(self, model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
        with torch.no_grad():
            others = model(images).scatter(1, labels[:, None], -torch.inf).argsort(dim=1, descending=True)
        turns = iter(others[:, : min(self.targets, others.shape[1] - 1)].T)

        def once(chosen: Tensor) -> Tensor:
            loss, targets = losses.LOSSES["targeted"], next(turns)[chosen]
            return apgd(model, images[chosen], labels[chosen], epsilon, norm=self.norm, loss=loss, steps=self.steps,
                        targets=targets)  # fmt: skip

        return first_to_fool(once, min(self.targets, others.shape[1] - 1), model, images, labels)


@dataclass(frozen=True)
class Square(Sized):
    """Random search that sees logits alone (Andriushchenko et al., 2020)."""

    queries: int = 500
    kind: ClassVar[str] = "square"

    @property
    def title(self) -> str:
        return f"Square, {self.queries:,} queries"

    def craft(self, model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
        return square(model, images, labels, epsilon, norm=self.norm, queries=self.queries)


@dataclass(frozen=True)
class BestTransfer(Sized):
    """PGD's images for other networks: an image is fooled where any of theirs fools it."""

    sources: tuple[nn.Module, ...] = field(default=(), repr=False, compare=False)
    digests: tuple[str, ...] = ()  # of the sources' weights
    loss: str = "margin"  # a source's saturated cross-entropy would hide what passes over
    steps: int = 20
    kind: ClassVar[str] = "transfer"

    @property
    def title(self) -> str:
        return f"transfer, the best of {len(self.sources)}"

    def craft(self, model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
        turns = iter(self.sources)

        def once(chosen: Tensor) -> Tensor:
            source, pgd = next(turns), RestartedPGD((epsilon,), self.norm, self.loss, self.steps)
            with exact(source):
                return pgd.craft(source, images[chosen], labels[chosen], epsilon)

        return first_to_fool(once, len(self.sources), model, images, labels)


def _pgd(norm: str, loss: str, steps: int) -> Any:
    """Foolbox's, on a loss of ours: it leaves that to its users."""
    climbed = losses.LOSSES[loss]

    base: Any = _PGD[norm]

    class Descent(base):
        def get_loss_fn(self, model: Any, labels: Any) -> Any:
            return lambda inputs: eagerpy.astensor(climbed(model(inputs).raw, labels.raw, labels.raw).sum())

    return Descent(steps=steps, rel_stepsize=2.5 / steps)
