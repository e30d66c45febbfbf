"""What a report says of one network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import masking, paper, worst
from ..attacks import exact, predictions
from ..data import Dataset, fitting
from ..evaluation import Subject, percent
from ..masking import Probe, Row
from ..worst import Worst

PROBED = 200  # images that the checks for masks see
SHOWN = 8
EPSILONS = {  # by channels: those of digits, those of photographs
    1: {"linf": (0.1, 0.2, 0.3), "l2": (1.0, 1.5, 2.0)},
    3: {"linf": (2 / 255, 4 / 255, 8 / 255), "l2": (0.25, 0.5, 1.0)},
}


@dataclass(frozen=True)
class Settings:
    """How a network is judged.

    Args:
        count: images, the first ones of the test set.
        subset: of them, those that the black boxes see; queries: of each by Square.
        hops: of them, those that HopSkipJump sees, which is slowest.
        epsilons: radii by norm, "linf" always among them.
    """

    epsilons: dict[str, tuple[float, ...]]
    count: int = 1000
    subset: int = 100
    queries: int = 500
    hops: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if "linf" not in self.epsilons:
            raise ValueError(f"epsilons must have radii in linf, got {', '.join(self.epsilons) or 'none'}")
        for name in ("count", "queries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("subset", "hops"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")


@dataclass
class Judgement:
    """A network's attacks by norm, its checks, and images: rows of [n, C, H, W], with what is seen in each [n]."""

    title: str
    digest: str
    record: dict[str, Any]
    clean: float
    worst: dict[str, Worst]
    rows: list[Row]
    printed: dict[float, float]  # the paper's accuracy under FGSM, by radius
    labels: Tensor
    samples: dict[str, tuple[Tensor, Tensor]]

    @property
    def verdict(self) -> str:
        return masking.overall(self.rows)

    def as_json(self) -> dict[str, Any]:
        attacks = {norm: [dataclasses.asdict(line) for line in found.lines] for norm, found in self.worst.items()}
        return {
            "title": self.title,
            "weights": self.digest,
            "verdict": self.verdict,
            "clean": self.clean,
            "images": len(next(iter(self.worst.values())).right),
            "paper": {"fgsm": self.printed},
            "minimum": {norm: found.minimum for norm, found in self.worst.items()},
            "white-box minimum": {
                norm: {epsilon: percent(held) for epsilon, held in found.white.items()}
                for norm, found in self.worst.items()
            },
            "attacks": attacks,
            "masking": [dataclasses.asdict(row) for row in self.rows],
            "training": self.record,
        }


def judge(subject: Subject, others: Sequence[Subject], data: Dataset, settings: Settings, folder: Path) -> Judgement:
    """Attacks a network in every norm, then checks what its gradients are worth."""
    found, device = {}, next((weight.device for weight in subject.model.parameters()), torch.device("cpu"))
    for norm, epsilons in settings.epsilons.items():
        hops = settings.hops if norm == "linf" else 0
        plan = worst.plan(norm, epsilons, data.classes, sources=others, subset=settings.subset,
                          queries=settings.queries, hops=hops, device=device)  # fmt: skip
        found[norm] = worst.worst_case(subject, plan, data.test, settings.count, folder, settings.seed)
    images, labels = first(data, PROBED, found["linf"].index)
    rows = masking.check(Probe(subject.model, images, labels, found["linf"]), settings.seed)
    record = getattr(subject, "record", {})
    return Judgement(
        title=subject.title,
        digest=subject.digest,
        record={key: record[key] for key in ("network", "config", "test_accuracy", "seconds") if key in record},
        clean=percent(found["linf"].right),
        worst=found,
        rows=rows,
        printed=_printed(subject.title, data.name, settings.epsilons["linf"]),
        labels=labels[:SHOWN],
        samples=_samples(subject, found["linf"], images[:SHOWN], labels[:SHOWN], settings.seed),
    )


def first(data: Dataset, count: int, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The first test images (of ``index``) in [0, 1] and their labels: fewer where they are large, to fit in memory."""
    count = min(len(data.test), max(SHOWN, fitting(count, data.shape)))
    images, labels, _ = next(data.test.batches(range(count) if index is None else index[:count], count))
    return images.clamp(0, 1), labels


def _samples(subject: Subject, found: Worst, images: Tensor, labels: Tensor, seed: int) -> dict[str, Any]:
    """The first images as they are, and as attacked at each radius."""
    shown = {"clean": (images, predictions(subject.model, images))}
    for epsilon in found.plan.epsilons:
        torch.manual_seed(seed)
        with exact(subject.model):
            crafted = worst.crafted(found.plan, subject.model, images, labels, epsilon)
        shown[f"ε = {epsilon:.3g}"] = (crafted, predictions(subject.model, crafted))
    return shown


def _printed(title: str, dataset: str, epsilons: Sequence[float]) -> dict[float, float]:
    cells = [cell for table in (1, 9) for cell in paper.cells(table)
             if (cell.dataset, cell.row, cell.attack) == (dataset, title, "fgsm")]  # fmt: skip
    return {epsilon: cell.paper for epsilon in epsilons for cell in cells
            if cell.paper is not None and abs(cell.epsilon - epsilon) < 1e-9}  # fmt: skip
