"""What a study's rows say together: a table and a picture, mean and spread over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..files import write, write_json
from . import figures
from .config import METHODS, TRAININGS

TRADED = ("alpha", "delta", "label_smoothing")
SYMBOLS = {"alpha": "α", "delta": "δ", "label_smoothing": "smoothing"}
ORDER = {name: place for place, name in enumerate((*TRAININGS, *METHODS))}
Row = dict[str, Any]


def written(rows: list[Row], dataset: str, judged: dict[str, Any], diverged: Sequence[str], folder: Path) -> str:
    """Writes ``study.json``, ``.md`` and ``.png``; returns the text."""
    groups = _grouped(rows)
    text = "\n\n".join([f"## Does compactness help? {dataset}, accuracy in %", _table(groups, judged["epsilons"]),
                        _notes(judged), *(f"Diverged: {line}" for line in diverged)])  # fmt: skip
    write_json(folder / "study.json", {"dataset": dataset, "rows": [row for group in groups for row in group]})
    write(folder / "study.md", lambda path: path.write_text(text + "\n"))
    if rows:
        title = f"{dataset}: accuracy under the strongest attack, mean and standard deviation over seeds"
        figures.spreads(folder / "study.png", title, [0.0, *judged["epsilons"]], _panels(groups))
    return text


def spread(values: Sequence[float]) -> str:
    """The mean, and the standard deviation where there are two or more."""
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.1f}"


def _grouped(rows: list[Row]) -> list[list[Row]]:
    """Rows that differ in their seed alone; trainings in order, then methods."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=_place):
        settings = [row["training"], row["method"], *(row[name] for name in TRADED), {**row["config"], "seed": None}]
        found.setdefault(json.dumps(settings, sort_keys=True), []).append(row)
    return list(found.values())


def _place(row: Row) -> tuple[float, ...]:
    traded = (-1.0 if row[name] is None else row[name] for name in TRADED)  # the method's own settings come first
    return (ORDER[row["training"]], ORDER[row["method"]], *traded, row["config"]["epochs"], row["config"]["seed"])


def _table(groups: list[list[Row]], radii: Sequence[float]) -> str:
    headers = ["training", "network", "epochs", "seeds", "clean", f"FGSM ε = {radii[-1]:.3g}"]
    headers += [f"ε = {radius:.3g}" for radius in radii]
    body = []
    for rows in groups:
        columns = [[row["test_accuracy"], row["fgsm"][-1], *row["minimum"]] for row in rows]
        numbers = [spread(column) for column in zip(*columns, strict=True)]
        body.append([_training(rows[0]), _network(rows[0]), rows[0]["config"]["epochs"], len(rows), *numbers])
    return tabulate(body, headers, tablefmt="github", disable_numparse=True, stralign="right")


def _notes(judged: dict[str, Any]) -> str:
    return (f"Mean ± standard deviation over seeds. clean: all test images; the rest: the first {judged['count']:,}. "
            "ε: under the strongest of all attacks of that L∞ radius, or a smaller one. Trainings: half of the images "
            "are FGSM's, or all are PGD's after so many steps.")  # fmt: skip


def _training(row: Row) -> str:
    config = row["config"]
    radius = f" ε = {config['adversarial_epsilon']:.3g}"
    names = {"plain": "plain", "fgsm": f"FGSM{radius}", "pgd": f"PGD-{config['adversarial_steps']}{radius}"}
    return names[row["training"]]


def _network(row: Row) -> str:
    return ", ".join([row["method"], *(f"{SYMBOLS[name]} {row[name]:g}" for name in TRADED if row[name] is not None)])


def _panels(groups: list[list[Row]]) -> dict[str, dict[str, list[list[float]]]]:
    """By training: each network's accuracies [seeds, radii], radius 0 first. Traded settings last, beside CCN's own."""
    panels: dict[str, dict[str, list[list[float]]]] = {}
    traded: dict[str, list[list[float]]] = {}
    for rows in groups:
        row, lines = rows[0], [[each["clean"], *each["minimum"]] for each in rows]
        changed = any(row[name] is not None for name in TRADED)
        panel, label = traded if changed else panels.setdefault(f"training: {_training(row)}", {}), _network(row)
        if label in panel:
            label += f", {row['config']['epochs']} epochs"
        panel[label] = lines
    own = {name: lines for name, lines in panels.get("training: plain", {}).items() if name == "CCN"}
    return {**panels, "CCN, one setting changed": {**own, **traded}} if traded else panels
