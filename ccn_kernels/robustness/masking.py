"""Signs of masked gradients, each a row with a verdict: a network whose gradients lie looks robust and is not.

Thresholds are in points of accuracy unless a row says otherwise. They lie between what sound networks showed (the
paper's six on MNIST: 8 at most) and what one with its logits times 100 did (80).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from . import probes
from .attacks import exact
from .evaluation import percent
from .sized import Noise, Sized
from .strong import RestartedPGD
from .worst import Worst

FGSM, PGD = "fgsm-linf", "pgd-ce-linf"  # which every plan has
VERDICTS = ("holds", "suspicious", "masked")
SUSPICIOUS, MASKED = 5.0, 15.0
SATURATED, DEAD = 17.0, 88.0  # margins from which float32 loses the right class's gradient, and all of it
ATHALYE = "Athalye, Carlini, Wagner, 2018: Obfuscated Gradients Give a False Sense of Security"
CARLINI = "Carlini et al., 2019: On Evaluating Adversarial Robustness"
WAGNER = "Carlini, Wagner, 2017: Towards Evaluating the Robustness of Neural Networks"


@dataclass(frozen=True)
class Row:
    """One check.

    Args:
        numbers: what was measured, by name.
        verdict: one of ``VERDICTS``, or "not measured".
        why: one sentence.
    """

    name: str
    numbers: dict[str, float]
    verdict: str
    why: str
    reference: str


@dataclass(frozen=True)
class Probe:
    """What the checks are made on.

    Args:
        images, labels: [N, C, H, W] in [0, 1] and [N]; some hundred.
        worst: of the L-infinity attacks, on these images first.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    worst: Worst
    epsilons: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilons", self.worst.plan.epsilons)


def check(probe: Probe, seed: int = 0) -> list[Row]:
    """All rows; random ones are drawn from ``seed``."""
    torch.manual_seed(seed)
    with exact(probe.model):
        return [each(probe) for each in CHECKS]


def overall(rows: Sequence[Row]) -> str:
    """The worst verdict of all."""
    return max((row.verdict for row in rows if row.verdict in VERDICTS), key=VERDICTS.index, default="not measured")


def by_gap(gap: float, suspicious: float = SUSPICIOUS, masked: float = MASKED) -> str:
    """A verdict from how far something is from what it should be; larger is worse."""
    return "masked" if gap >= masked else "suspicious" if gap >= suspicious else "holds"


def _zero_gradients(probe: Probe) -> Row:
    share = probes.zero_gradients(probe.model, probe.images, probe.labels)
    why = f"{share:.1f} % of the images have a gradient of exactly zero: attacks by gradients leave them alone."
    return Row("exactly-zero gradients", {"share, %": share}, by_gap(share, 1, 10), why, CARLINI)


def _margins(probe: Probe) -> Row:
    found = probes.margins(probe.model, probe.images, probe.labels)
    if not len(found):
        return _unmeasured("logit margins", "no image is right before an attack", WAGNER)
    shares = {limit: 100 * (found > limit).double().mean().item() for limit in (SATURATED, DEAD)}
    quantiles = found.double().quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64, device=found.device))
    numbers = dict(zip(("5 %", "median", "95 %"), quantiles.tolist(), strict=True))
    numbers |= {f"beyond {limit:g}, %": share for limit, share in shares.items()}
    verdict = "masked" if shares[DEAD] >= 10 else "suspicious" if shares[SATURATED] >= 50 else "holds"
    why = f"Beyond {SATURATED:g} float32 has no cross-entropy gradient of the right class, beyond {DEAD:g} none at all."
    return Row("logit margins", numbers, verdict, why, WAGNER)


def _other_losses(probe: Probe) -> Row:
    numbers: dict[str, float] = {}
    gap = 0.0
    for epsilon in probe.epsilons:
        usual = probes.one_step(probe.model, probe.images, probe.labels, epsilon)
        others = {"float64": probes.one_step_in_float64(probe.model, probe.images, probe.labels, epsilon),
                  "margin": probes.one_step(probe.model, probe.images, probe.labels, epsilon, "margin")}  # fmt: skip
        found = {name: value for name, value in others.items() if value is not None}
        numbers |= {f"float32, ε = {epsilon:.3g}": usual}
        numbers |= {f"{name}, ε = {epsilon:.3g}": value for name, value in found.items()}
        gap = max(gap, usual - min(found.values()))
    why = f"FGSM takes {gap:.1f} points more in float64 or on the logits' margin than on float32's cross-entropy."
    return Row("FGSM in float64 and on the margin", numbers, by_gap(gap), why, WAGNER)


def _logit_scale(probe: Probe) -> Row:
    numbers: dict[str, float] = {}
    gap = rise = 0.0
    for epsilon in probe.epsilons:
        found = probes.by_scale(probe.model, probe.images, probe.labels, epsilon)
        numbers |= {f"times {factor:g}, ε = {epsilon:.3g}": value for factor, value in found.items()}
        gap, rise = max(gap, found[1.0] - min(found.values())), max(rise, max(found.values()) - found[1.0])
    why = (f"Another scale of the logits, which changes no prediction, takes {gap:.1f} points more under FGSM, or "
           f"hides {rise:.1f}.")  # fmt: skip
    return Row("FGSM with the logits scaled", numbers, by_gap(gap), why, WAGNER)


def _unbounded(probe: Probe) -> Row:
    held = _held(probe, RestartedPGD((1.0,)), 1.0)
    why = f"Where PGD may change everything (ε = 1), {held:.1f} % hold, and none should."
    return Row("unbounded PGD", {"accuracy, %": held}, by_gap(held, 1, 10), why, ATHALYE)


def _one_step_against_many(probe: Probe) -> Row:
    one, many = _alone(probe, FGSM), _alone(probe, PGD)
    numbers = {f"{name}, ε = {epsilon:.3g}": line[epsilon]
               for epsilon in probe.epsilons for name, line in (("FGSM", one), ("PGD", many))}  # fmt: skip
    gap = max(many[epsilon] - one[epsilon] for epsilon in probe.epsilons)
    why = f"PGD, which iterates, {f'leaves {gap:.1f} points' if gap > 0 else 'nowhere leaves'} more than FGSM."
    return Row("one step against many", numbers, by_gap(gap, 1, 5), why, ATHALYE)


def _growing(probe: Probe) -> Row:
    alone = _alone(probe, PGD)
    rise = max((later - earlier for earlier, later in pairwise(alone.values())), default=0.0)
    why = "A larger ε contains the smaller: accuracy under PGD must not rise"
    why += f", and does by {rise:.1f}." if rise > 0 else ", and does not."
    numbers = {f"PGD, ε = {epsilon:.3g}": value for epsilon, value in alone.items()}
    return Row("accuracy falls as ε grows", numbers, by_gap(rise, 2, 10), why, ATHALYE)


def _black_against_white(probe: Probe) -> Row:
    name = "black box against white box"
    if not probe.worst.plan.black_box:
        return _unmeasured(name, "no black box was asked for", ATHALYE)
    numbers: dict[str, float] = {}
    gap = 0.0
    for epsilon in probe.epsilons:
        for attack in (each.name for each in probe.worst.plan.black_box):
            black = probe.worst.alone[attack][epsilon]
            only = percent(probe.worst.white[epsilon][: len(black)] & ~black)
            numbers[f"fooled by {attack} alone, %, ε = {epsilon:.3g}"] = only
            gap = max(gap, only)
    why = f"A black box fools {gap:.1f} % of the images at a radius where every attack by gradients fails."
    return Row(name, numbers, by_gap(gap, 2, 10), why, ATHALYE)


def _black_against_one_step(probe: Probe) -> Row:
    """FGSM is weak at large radii on any network: 10 points, a plain one's on MNIST at ε = 0.3, still hold."""
    name = "black box against FGSM"
    if not probe.worst.plan.black_box:
        return _unmeasured(name, "no black box was asked for", ATHALYE)
    numbers: dict[str, float] = {}
    gap = -100.0
    for attack in (each.name for each in probe.worst.plan.black_box):
        for epsilon, held in probe.worst.alone[attack].items():
            black, one = percent(held), percent(probe.worst.alone[FGSM][epsilon][: len(held)])
            numbers |= {f"{attack}, ε = {epsilon:.3g}": black, f"FGSM on {attack}'s images, ε = {epsilon:.3g}": one}
            gap = max(gap, one - black)
    why = (
        f"A black box takes {gap:.1f} points more than FGSM does." if gap > 0 else "No black box takes more than FGSM."
    )
    return Row(name, numbers, by_gap(gap, 20, 30), why, ATHALYE)


def _noise(probe: Probe) -> Row:
    numbers: dict[str, float] = {}
    gap = -100.0
    many = _alone(probe, PGD, len(probe.images))
    for epsilon in probe.epsilons:
        numbers[f"noise, ε = {epsilon:.3g}"] = held = _held(probe, Noise((epsilon,)), epsilon)
        gap = max(gap, many[epsilon] - held)
    why = f"Random noise leaves {'less' if gap > 0 else 'no less'} than PGD does."
    return Row("random noise", numbers, by_gap(gap, 1, 5), why, CARLINI)


def _finite_differences(probe: Probe) -> Row:
    name, few = "gradient against finite differences", slice(20)
    error = probes.gradient_error(probe.model, probe.images[few], probe.labels[few])
    if error is None:
        return _unmeasured(name, "the network does not run in float64", ATHALYE)
    why = f"The margin's gradient is off its slope in float64 by {100 * error:.2g} % (the median of random directions)."
    return Row(name, {"relative error": error}, by_gap(error, 0.2, 0.6), why, ATHALYE)


CHECKS: tuple[Callable[[Probe], Row], ...] = (
    _zero_gradients, _margins, _other_losses, _logit_scale, _unbounded, _one_step_against_many, _growing,
    _black_against_white, _black_against_one_step, _noise, _finite_differences,
)  # fmt: skip


def _alone(probe: Probe, name: str, count: int | None = None) -> dict[float, float]:
    """Accuracy under one attack by itself, by radius, on the first ``count`` images."""
    return {epsilon: percent(held[:count]) for epsilon, held in probe.worst.alone[name].items()}


def _held(probe: Probe, attack: Sized, epsilon: float) -> float:
    fooled = attack(probe.model, probe.images, probe.labels)["fooled"][:, 0].cpu()
    return percent(probe.worst.right[: len(fooled)] & ~fooled)


def _unmeasured(name: str, reason: str, reference: str) -> Row:
    return Row(name, {}, "not measured", f"Not measured: {reason}.", reference)
