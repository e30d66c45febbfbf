"""Does compactness help where it counts? Networks trained plainly and on attacks, over seeds, and what is left of them.

Each network leaves a row on disk; the summary is over all rows there that were judged alike, so that a study may grow.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..files import read_json, write_json
from . import progress, summary, worst
from .config import ARCHITECTURE_OF, METHODS, SCHEDULES, TRAININGS, TrainConfig
from .data import Dataset
from .evaluation import percent
from .runs import Network, Run, folder_name
from .training import DivergedError, train
from .worst import Worst

logger = logging.getLogger("ccn_kernels")

MADRY = {"adversarial_steps": 7, "adversarial_warmup": 1 / 3}  # of "pgd", unless said


@dataclass(frozen=True)
class Kind:
    """What is trained, once a seed.

    Args:
        method: the paper's name of a defence.
        training: "plain"; "fgsm", half of it on FGSM's images as in table 4; "pgd", on PGD's (Madry et al., 2018).
        alpha, delta: of compact layers; label_smoothing: as in :class:`.config.TrainConfig`. None for the method's.

    Raises:
        ValueError: there is no such method or training.
    """

    method: str
    training: str = "plain"
    alpha: float | None = None
    delta: float | None = None
    label_smoothing: float | None = None

    def __post_init__(self) -> None:
        for name, known in (("method", tuple(METHODS)), ("training", TRAININGS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class Settings:
    """How networks are trained and judged.

    Args:
        epsilons: L-infinity radii; adversarial training takes the largest.
        count: the first test images; black_box: of them, those that Square sees, too.
        steps: of each run of Auto-PGD.
        changes: to the data set's schedule; adversarial_steps and adversarial_warmup are those of "pgd".
    """

    epsilons: tuple[float, ...]
    count: int = 1000
    black_box: int = 50
    steps: int = 50
    changes: dict[str, Any] = field(default_factory=dict)

    def config(self, kind: Kind, dataset: str, seed: int) -> TrainConfig:
        """The schedule of a kind.

        Raises:
            ValueError: a setting is out of its range.
        """
        given = {**self.changes, "seed": seed}
        madry = {name: given.pop(name, usual) for name, usual in MADRY.items()}
        if kind.label_smoothing is not None:
            given["label_smoothing"] = kind.label_smoothing
        if kind.training != "plain":
            if not max(self.epsilons) > 0:
                raise ValueError(f"epsilons must have a radius above 0 to train on attacks, got {self.epsilons}")
            given["adversarial_epsilon"] = max(self.epsilons)
        if kind.training == "pgd":
            if madry["adversarial_steps"] < 1:
                raise ValueError(f"adversarial_steps must be 1 or more for PGD, got {madry['adversarial_steps']}")
            given |= madry
        return replace(SCHEDULES[dataset], **given)

    def judged(self, data: Dataset) -> dict[str, Any]:
        """What rows must share to stand in one table."""
        count = min(self.count, len(data.test))
        return {"data": data.identity, "epsilons": sorted({*self.epsilons}), "count": count,
                "black_box": min(self.black_box, count), "steps": self.steps}  # fmt: skip


class Task(NamedTuple):
    """A network to be trained and judged."""

    kind: Kind
    network: Network
    config: TrainConfig


def kinds(methods: Iterable[str], trainings: Iterable[str], traded: dict[str, Sequence[float]]) -> list[Kind]:
    """Every method in every training, then CCN with one setting changed at a time, trained plainly.

    Raises:
        ValueError: a method, a training or a setting is unknown.
    """
    if not traded.keys() <= {*summary.TRADED}:
        raise ValueError(f"traded settings must be among {summary.TRADED}, got {', '.join(traded)}")
    found = [Kind(method, training) for training in trainings for method in methods]
    for name, values in traded.items():
        found += [Kind("CCN", **{name: value}) for value in values]  # type: ignore[arg-type]
    return found


def run(
    chosen: Sequence[Kind], seeds: Sequence[int], data: Dataset, settings: Settings, out: Path,
    device: torch.device | str = "cpu",
) -> str:  # fmt: skip
    """Trains and judges what is missing, writes ``study.json``, ``.md`` and ``.png`` to ``out/DATASET``.

    Returns:
        The summary's text; a network that diverged is named there, and has no row.

    Raises:
        ValueError: a setting is out of its range, or a file is not what it should be: before anything is trained.
    """
    home, judged = out / data.name, settings.judged(data)
    tasks = [_task(kind, seed, data, settings) for seed in seeds for kind in chosen]
    read(home, judged)
    diverged = []
    for task in progress.bar(tasks, desc="study", unit="network"):
        try:
            trained = train(task.network, data, task.config, home / folder_name(task.network, task.config), device)
        except DivergedError as error:
            logger.warning("%s", error)
            diverged.append(f"{task.kind.training}, seed {task.config.seed}: {error}")
            continue
        path = _path(home, trained, judged)
        if not path.exists():
            write_json(path, _row(task, trained, _attacked(trained, task, data, settings, home, device), judged))
    return summary.written(read(home, judged), data.name, judged, diverged, home)


def read(home: Path, judged: dict[str, Any]) -> list[dict[str, Any]]:
    """All rows that were judged like this.

    Raises:
        ValueError: a file is no row; the message names it.
    """
    rows = []
    for path in sorted((home / "study").glob("*.json")):
        if ".tmp" in path.suffixes:  # left by a kill, or another study's that is being written
            continue
        row = read_json(path)
        if not isinstance(row, dict) or "judged" not in row:
            raise ValueError(f"{path} is no row of `ccn study`: delete it")
        if row["judged"] == json.loads(json.dumps(judged)):
            rows.append(row)
    return rows


def _task(kind: Kind, seed: int, data: Dataset, settings: Settings) -> Task:
    architecture = ARCHITECTURE_OF.get(data.name, "vgg11")
    network = Network(architecture, METHODS[kind.method], alpha=kind.alpha, delta=kind.delta)
    network.build(data.shape, data.classes)  # what is wrong with it is said before hours have passed
    return Task(kind, network, settings.config(kind, data.name, seed))


def _attacked(
    trained: Run, task: Task, data: Dataset, settings: Settings, home: Path, device: torch.device | str
) -> Worst:
    plan = worst.plan("linf", settings.epsilons, data.classes, subset=settings.black_box, steps=settings.steps,
                      device=device)  # fmt: skip
    return worst.worst_case(trained, plan, data.test, settings.count, home / "attacks", task.config.seed)


def _path(home: Path, trained: Run, judged: dict[str, Any]) -> Path:
    identity = json.dumps([trained.digest, judged], sort_keys=True)
    return home / "study" / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"


def _row(task: Task, trained: Run, found: Worst, judged: dict[str, Any]) -> dict[str, Any]:
    return {
        **asdict(task.kind),
        "judged": judged,
        "config": asdict(task.config),  # an older record lacks settings
        "test_accuracy": trained.record["test_accuracy"],
        "learned_alpha": trained.record["alpha"],
        "seconds": trained.record["seconds"],
        "weights_sha256": trained.digest,
        "environment": trained.record["environment"],
        "clean": percent(found.right),
        "minimum": list(found.minimum.values()),  # by radius
        "white_box": [percent(held) for held in found.white.values()],
        "fgsm": list(found.lines[0].alone.values()),
        "attacks": [asdict(line) for line in found.lines],
    }
