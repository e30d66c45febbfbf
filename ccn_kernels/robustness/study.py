"""Does compactness help where it counts? Networks trained plainly and on attacks, over seeds, and what is left of them.

Each trained and judged network leaves a row on disk; the summary is over all rows there, so that a study may grow.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from tqdm import tqdm

from ..env_report import report
from ..files import read_json, write, write_json
from . import figures, worst
from .config import ARCHITECTURE_OF, METHODS, SCHEDULES, TrainConfig
from .data import Dataset
from .runs import Network, Run, folder_name
from .training import train
from .worst import Worst

TRAININGS = {"plain": "plain", "fgsm": "half FGSM's images", "pgd": "PGD's images"}
MADRY = {"adversarial_steps": 7, "adversarial_warmup": 1 / 3}
TRADED = ("alpha", "delta", "label_smoothing")
SYMBOLS = {"alpha": "α", "delta": "δ", "label_smoothing": "smoothing"}


@dataclass(frozen=True)
class Kind:
    """What is trained, once a seed.

    Args:
        method: the paper's name of a defence.
        training: a key of ``TRAININGS``: "fgsm" as in table 4, "pgd" as in Madry et al., 2018.
        alpha, delta: of compact layers; label_smoothing: as in :class:`.config.TrainConfig`. None for the method's.
    """

    method: str
    training: str = "plain"
    alpha: float | None = None
    delta: float | None = None
    label_smoothing: float | None = None


@dataclass(frozen=True)
class Settings:
    """How networks are trained and judged.

    Args:
        epsilons: L-infinity radii; adversarial training takes the largest.
        count: the first test images; black_box: of them, those that Square sees, too.
        steps: of each run of Auto-PGD.
        changes: to the data set's schedule.
    """

    epsilons: tuple[float, ...]
    count: int = 1000
    black_box: int = 50
    steps: int = 50
    changes: dict[str, Any] = field(default_factory=dict)

    def config(self, kind: Kind, dataset: str, seed: int) -> TrainConfig:
        """The schedule of a kind."""
        given = {**self.changes, "seed": seed}
        steps = {name: given.pop(name, usual) for name, usual in MADRY.items()}
        if kind.label_smoothing is not None:
            given["label_smoothing"] = kind.label_smoothing
        if kind.training != "plain":
            given["adversarial_epsilon"] = max(self.epsilons)
        return replace(SCHEDULES[dataset], **given, **(steps if kind.training == "pgd" else {}))

    @property
    def judged(self) -> dict[str, Any]:
        """What rows must share to stand in one table."""
        return {"epsilons": sorted(self.epsilons), "count": self.count, "steps": self.steps}


def kinds(methods: Iterable[str], trainings: Iterable[str], traded: dict[str, Sequence[float]]) -> list[Kind]:
    """Every method in every training, then CCN with one setting changed at a time, trained plainly.

    Raises:
        ValueError: a setting cannot be traded.
    """
    if not traded.keys() <= {*TRADED}:
        raise ValueError(f"traded settings must be among {TRADED}, got {', '.join(traded)}")
    found = [Kind(method, training) for training in trainings for method in methods]
    for name, values in traded.items():
        found += [Kind("CCN", **{name: value}) for value in values]  # type: ignore[arg-type]
    return found


def run(
    chosen: Sequence[Kind], seeds: Sequence[int], data: Dataset, settings: Settings, out: Path,
    device: torch.device | str = "cpu",
) -> str:  # fmt: skip
    """Trains and judges what is missing, writes ``out/study.json``, ``.md`` and ``.png``; returns the text."""
    home = out / data.name
    todo = [(seed, kind) for seed in seeds for kind in chosen]
    for seed, kind in tqdm(todo, desc="study", unit="network"):
        network = Network(
            ARCHITECTURE_OF.get(data.name, "vgg11"), METHODS[kind.method], alpha=kind.alpha, delta=kind.delta
        )
        config = settings.config(kind, data.name, seed)
        folder = home / folder_name(network, config)
        trained = train(network, data, config, folder, device)
        plan = worst.plan("linf", settings.epsilons, data.classes, subset=settings.black_box, steps=settings.steps,
                          device=device)  # fmt: skip
        found = worst.worst_case(trained, plan, data.test, settings.count, home / "attacks", seed)
        row = _row(kind, seed, trained, found, settings)
        write_json(home / "study" / f"{folder.name}-{config.epochs}-epochs.json", row)
    rows = [_checked(path) for path in sorted((home / "study").glob("*.json"))]
    return _written([row for row in rows if row["judged"] == settings.judged], data, settings, out)


def _row(kind: Kind, seed: int, trained: Run, found: Worst, settings: Settings) -> dict[str, Any]:
    return {
        **asdict(kind),
        "seed": seed,
        "judged": settings.judged,
        "config": trained.record["config"],
        "test_accuracy": trained.record["test_accuracy"],
        "learned_alpha": trained.record["alpha"],
        "seconds": trained.record["seconds"],
        "weights_sha256": trained.digest,
        "images": len(found.right),
        "clean": worst.percent(found.right),
        "minimum": list(found.minimum.values()),  # by radius
        "white_box": [worst.percent(held) for held in found.white.values()],
        "fgsm": list(found.lines[0].alone.values()),
        "attacks": [asdict(line) for line in found.lines],
        "environment": report(),
    }


def _checked(path: Path) -> dict[str, Any]:
    row = read_json(path)
    if not isinstance(row, dict) or "judged" not in row:
        raise ValueError(f"{path} is no row of `ccn study`: delete it")
    return row


def _written(rows: list[dict[str, Any]], data: Dataset, settings: Settings, out: Path) -> str:
    groups = _grouped(rows)
    text = _text(groups, data, settings)
    write_json(out / "study.json", {"dataset": data.name, "rows": rows})
    write(out / "study.md", lambda path: path.write_text(text + "\n"))
    radii, title = [0.0, *sorted(settings.epsilons)], f"{data.name}: accuracy under the strongest attack, by training"
    figures.spreads(out / "study.png", title, radii, _panels(groups))
    return text


def _grouped(rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Rows that differ in their seed alone; in the order of the trainings, then of the methods."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    order = {name: place for place, name in enumerate((*TRAININGS, *METHODS))}
    for row in sorted(rows, key=lambda row: (order[row["training"]], order[row["method"]], _own(row))):
        key = (row["training"], row["method"], *(row[name] for name in TRADED), row["config"]["epochs"])
        found.setdefault(key, []).append(row)
    return found


def _own(row: dict[str, Any]) -> tuple[float, ...]:
    """What sets a row apart from the method's own settings, which come first."""
    return tuple(-1.0 if row[name] is None else row[name] for name in TRADED)


def _text(groups: dict[tuple[Any, ...], list[dict[str, Any]]], data: Dataset, settings: Settings) -> str:
    radii = [f"{epsilon:.3g}" for epsilon in sorted(settings.epsilons)]
    headers = ["training", "network", "epochs", "seeds", "clean", f"FGSM {radii[-1]}", *(f"ε = {one}" for one in radii)]
    body = []
    for (training, method, *traded, epochs), rows in groups.items():
        columns = [[row["test_accuracy"], row["fgsm"][-1], *row["minimum"]] for row in rows]
        numbers = [spread(column) for column in zip(*columns, strict=True)]
        body.append([TRAININGS[training], _name(method, traded), epochs, len(rows), *numbers])
    return "\n\n".join([
        f"## Does compactness help? {data.name}, accuracy in %",
        tabulate(body, headers, tablefmt="github", disable_numparse=True, stralign="right"),
        f"Mean ± standard deviation over seeds. clean: all test images; the rest: the first {settings.count:,}. "
        "ε: under the strongest of all attacks, in L∞; FGSM beside it.",
    ])  # fmt: skip


def spread(values: Sequence[float]) -> str:
    """The mean, and the standard deviation where there are two or more."""
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.1f}"


def _name(method: str, traded: Sequence[float | None]) -> str:
    given = [f"{SYMBOLS[name]} {value:g}" for name, value in zip(TRADED, traded, strict=True) if value is not None]
    return ", ".join([method, *given])


def _panels(groups: dict[tuple[Any, ...], list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """By training and method: accuracies [seeds, radii], radius 0 first; of traded settings none."""
    panels: dict[str, dict[str, Any]] = {}
    for (training, method, *traded, _), rows in groups.items():
        if all(value is None for value in traded):
            values = [[row["clean"], *row["minimum"]] for row in rows]
            panels.setdefault(TRAININGS[training], {})[method] = values
    return panels
