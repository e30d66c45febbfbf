"""The minimum over attacks: an image holds at a radius where no attack of that radius, or a smaller one, fools it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import losses
from .attacks import Attack, Outcome, sized_for
from .data import Split
from .evaluation import Subject, evaluate, images_per_second, percent, settings
from .least import LeastChange
from .sized import OneStep, Sized, first_to_fool
from .strong import APGD, BestTransfer, RestartedPGD, Square, TargetedAPGD


@dataclass(frozen=True)
class Plan:
    """What attacks whom.

    Args:
        whole: see every image: their own curves can be drawn.
        survivors: see, radius by radius, what is left.
        black_box: see no gradient of the network; the first ``subset`` images, all of them.
    """

    norm: str
    epsilons: tuple[float, ...]
    whole: tuple[Attack, ...]
    survivors: tuple[Sized, ...]
    black_box: tuple[Attack, ...] = ()
    subset: int = 0
    hops: int = 0  # of these, those that HopSkipJump sees


@dataclass
class Line:
    """What one attack did. Shares are in percent of all images that it was set on, by radius.

    Args:
        alone: accuracy under this attack by itself; empty where it saw survivors only.
        left: accuracy after it and all before it.
        broke: images that only it, among those so far, fooled.
    """

    title: str
    settings: dict[str, Any]
    images: int = 0
    images_per_second: float = math.nan
    alone: dict[float, float] = field(default_factory=dict)
    left: dict[float, float] = field(default_factory=dict)
    broke: dict[float, int] = field(default_factory=dict)


@dataclass
class Worst:
    """All lines of a plan, and what held, by radius: against gradients, and against everything, each [N]."""

    plan: Plan
    index: Tensor
    right: Tensor
    lines: list[Line] = field(default_factory=list)
    white: dict[float, Tensor] = field(default_factory=dict)
    held: dict[float, Tensor] = field(default_factory=dict)
    alone: dict[str, dict[float, Tensor]] = field(default_factory=dict)  # by attack and radius, of the first images

    @property
    def minimum(self) -> dict[float, float]:
        """Accuracy in percent by radius."""
        return {epsilon: percent(held) for epsilon, held in self.held.items()}


def plan(
    norm: str, epsilons: Sequence[float], classes: int, *, sources: Sequence[Subject] = (), subset: int = 100,
    queries: int = 500, hops: int = 0, steps: int = 50, device: torch.device | str = "cpu",
) -> Plan:  # fmt: skip
    """The attacks of a report. What needs more classes than there are is left out.

    Args:
        sources: other networks, whose images are tried on this one.
        subset, hops: images that the black boxes, and HopSkipJump among them, see, which are slow; 0 leaves them out.
        queries: of each image by Square; steps: of each run of Auto-PGD, fewer of the others.
        device: that batches are made large enough for.
    """
    radii, few = tuple(sorted({float(epsilon) for epsilon in epsilons})), min(20, steps)
    survivors: list[Sized] = [APGD(radii, norm, "ce", steps)]  # what takes most comes first: the others see less
    if classes >= losses.CLASSES["dlr"]:
        survivors.append(APGD(radii, norm, "dlr", steps))
    if classes >= losses.CLASSES["targeted"]:
        survivors.append(TargetedAPGD(radii, norm, steps=few))
    survivors.append(RestartedPGD(radii, norm, "margin", few, 2))
    black: list[Attack] = [Square(radii, norm, queries)] if subset else []
    if sources and subset:
        models, digests = tuple(one.model for one in sources), tuple(one.digest for one in sources)
        black.append(BestTransfer(radii, norm, models, digests))
    if hops:
        black.append(LeastChange("hsj", norm, steps=10))
    whole: list[Attack] = [OneStep(radii, norm), RestartedPGD(radii, norm, "ce", few),
                           LeastChange("gradient", norm, 2 * few)]  # fmt: skip
    sized: list[Any] = [tuple(sized_for(device, each) for each in part) for part in (whole, survivors, black)]
    return Plan(norm, radii, sized[0], sized[1], sized[2], subset, hops)


def worst_case(run: Subject, plan: Plan, split: Split, count: int, folder: Path, seed: int = 0) -> Worst:
    """Carries a plan out on the first ``count`` images; what was done before is read from ``folder``."""
    found: Worst | None = None
    for attack in plan.whole:
        outcome = evaluate(run, attack, split, count, folder, seed=seed)
        found = found or _begin(plan, outcome)
        _note(found, attack, outcome)
    assert found is not None
    later = [Line(each.title, settings(each)) for each in plan.survivors]
    for epsilon in plan.epsilons:
        for line, each in zip(later, plan.survivors, strict=True):
            _survivors(found, line, replace(each, epsilons=(epsilon,)), epsilon, (run, split, folder, seed))
    found.lines += later
    found.white = {epsilon: held.clone() for epsilon, held in found.held.items()}
    for attack in plan.black_box:
        few = plan.hops if isinstance(attack, LeastChange) else plan.subset
        outcome = evaluate(run, attack, split, min(count, few), folder, seed=seed)
        _note(found, attack, outcome)
    return found


def holds(outcome: Outcome, attack: Attack, epsilon: float) -> Tensor:
    """Images [N] that were right and stay so where the attack may change them by ``epsilon``."""
    fooled = outcome["fooled"]
    if "distance" in outcome:
        fooled = fooled & (outcome["distance"] <= epsilon)
    else:
        fooled = fooled[:, attack.epsilons.index(epsilon)]  # type: ignore[attr-defined]
    return outcome["right"] & ~fooled


def _begin(plan: Plan, outcome: Outcome) -> Worst:
    right = outcome["right"]
    return Worst(plan, outcome["index"], right, held={epsilon: right.clone() for epsilon in plan.epsilons})


def _note(found: Worst, attack: Any, outcome: Outcome) -> None:
    """Adds an attack that saw the first images, as many as its outcome has."""
    count = len(outcome["right"])
    times = len(attack.epsilons) if isinstance(attack, Sized) else 1  # that it attacked an image
    line = Line(attack.title, settings(attack), count, times * images_per_second(outcome))
    found.alone[attack.name] = {epsilon: holds(outcome, attack, epsilon) for epsilon in found.plan.epsilons}
    for epsilon, held in found.alone[attack.name].items():
        line.alone[epsilon] = percent(held)
        _strike(found, line, epsilon, torch.arange(count)[~held])
        line.left[epsilon] = percent(found.held[epsilon])
    found.lines.append(line)


def _survivors(found: Worst, line: Line, attack: Sized, epsilon: float, where: tuple[Any, ...]) -> None:
    """Sets an attack on what holds yet at a radius."""
    run, split, folder, seed = where
    places = found.held[epsilon].nonzero().flatten()
    line.broke.setdefault(epsilon, 0)
    if len(places):
        outcome = evaluate(run, attack, split, None, folder, seed=seed, among=found.index[places])
        _strike(found, line, epsilon, places[~holds(outcome, attack, epsilon)])
        seen, spent = line.images, line.images / line.images_per_second if line.images else 0.0
        line.images = seen + len(places)
        line.images_per_second = line.images / (spent + len(places) / images_per_second(outcome))
    line.left[epsilon] = percent(found.held[epsilon])


def _strike(found: Worst, line: Line, epsilon: float, places: Tensor) -> None:
    """Strikes images that do not hold off the list, there and at all larger radii; counts what was on it."""
    for radius, held in found.held.items():
        if radius >= epsilon:
            line.broke[radius] = line.broke.get(radius, 0) + int(held[places].sum())
            held[places] = False


def crafted(plan: Plan, model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Adversarial images [N, C, H, W] by the first attack of the plan that finds one; the last one's otherwise."""
    attacks = [attack for attack in (*plan.whole, *plan.survivors) if isinstance(attack, Sized)]
    turns = iter(attacks)
    return first_to_fool(
        lambda chosen: next(turns).craft(model, images[chosen], labels[chosen], epsilon),
        len(attacks), model, images, labels,
    )  # fmt: skip
