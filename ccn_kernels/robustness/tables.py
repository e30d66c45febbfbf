"""The paper's tables with our numbers beside its own: printed, and as CSV, JSON and Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from ..env_report import report
from ..files import write, write_json
from . import config, figures, paper, progress
from .lab import Lab, Measured
from .minimum import Entry, flags, lowered
from .paper import Cell

DATASET_TITLES = {"mnist": "MNIST", "cifar10": "CIFAR-10", "ilsvrc_val": "ILSVRC-2012"}
ZERO = "zero gradients, %"
STANDS_FOR = {"digits": "scikit-learn's digits", "digits32": "scikit-learn's digits", "folder": "a tree of images"}


ALL = tuple(config.METHODS)


def chosen(number: int, datasets: Collection[str], methods: Collection[str] = ALL) -> list[Cell]:
    """A table's cells on some data sets that need no other networks than these methods'."""
    return [cell for cell in paper.cells(number)
            if cell.dataset in datasets and {cell.method, cell.source or cell.method} <= {*methods}]  # fmt: skip


def run(number: int, lab: Lab, datasets: Sequence[str], out: Path, methods: Sequence[str] = ALL) -> str:
    """Measures what is chosen of a table and writes it to ``out``; returns its text.

    Raises:
        ValueError: there is no such table, or it has nothing on these data sets by these methods.
    """
    found = chosen(number, datasets, methods)
    if not found:
        by = "" if {*methods} >= {*ALL} else f" by {', '.join(methods)}"
        raise ValueError(f"table {number} has nothing on {', '.join(datasets)}{by}")
    entries = [Entry(cell, lab.measure(cell)) for cell in progress.bar(found, desc=f"table {number}", unit="cell")]
    entries = lowered(entries)
    text = _text(number, lab, entries)
    stem = out / f"table{number}"
    write(stem.with_suffix(".md"), lambda path: path.write_text(text + "\n"))
    write(stem.with_suffix(".csv"), lambda path: path.write_text(_csv(entries)))
    write_json(stem.with_suffix(".json"), _json(number, lab, entries))
    _picture(stem.with_suffix(".png"), number, lab, entries)
    return text


def _title(number: int) -> str:
    return f"Table {number}. {paper.TITLES[number]}"


def _text(number: int, lab: Lab, entries: Sequence[Entry]) -> str:
    parts = [f"## {_title(number)}"]
    for dataset in dict.fromkeys(entry.cell.dataset for entry in entries):
        mine = [entry for entry in entries if entry.cell.dataset == dataset]
        parts.append(_heading(dataset, lab, mine))
        ours_alone = [entry for entry in mine if entry.cell.paper is None]
        parts.append(_grid(_printed(mine)))
        parts += ["Not in the paper:", _grid(ours_alone)] if ours_alone else []
        if number in (7, 8):
            parts.append("The other reading of the paper, rows crafted on and columns tested on:")
            parts.append(_grid(_transposed(_printed(mine))))
            parts.append(_flags(_printed(mine)))
        else:
            lines = "\n".join(f"- {line}" for line in flags(mine))
            parts += ["Weaker attacks that do more harm than stronger ones:", lines] if lines else []
    parts.append(
        "Each number: ours (the paper's, the difference). The minimum is over attacks, on the images that all saw."
    )
    return "\n\n".join(filter(None, parts))


def _heading(dataset: str, lab: Lab, entries: Sequence[Entry]) -> str:
    epochs = lab.scale.config(dataset, lab.changes).epochs
    counts = sorted({(entry.cell.attack, entry.measured.images) for entry in entries})
    images = ", ".join(f"{attack} {count:,}" for attack, count in counts if attack != "none")
    return f"**{_name(dataset, lab)}**; {epochs} epochs, seed {lab.seed}; attacked images: {images}"


def _name(dataset: str, lab: Lab) -> str:
    stand_in = STANDS_FOR.get(lab.scale.data[dataset])
    return DATASET_TITLES[dataset] + (f" (here: {stand_in})" if stand_in else "")


def _grid(entries: Sequence[Entry]) -> str:
    rows: dict[str, dict[str, str]] = {}
    columns = list(dict.fromkeys(entry.cell.column for entry in entries))
    zero: dict[str, dict[str, float]] = {"row": {}, "column": {}}  # the largest share of each
    for cell, measured in entries:
        rows.setdefault(cell.row, {})[cell.column] = _number(cell, measured)
        for kind, name in (("row", cell.row), ("column", cell.column)):
            zero[kind][name] = max(zero[kind].get(name, 0.0), measured.notes.get("zero gradients", 0.0))
    body = [[name, *(row.get(column, "") for column in columns)] for name, row in rows.items()]
    headers = ["", *columns]
    if all(cell.column == f"on {cell.source}" for cell, _ in entries):  # a column's images have one network's gradients
        body.append([ZERO, *(f"{zero['column'][column]:.1f}" for column in columns)])
    else:
        headers.append(ZERO)
        body = [[*line, f"{zero['row'][line[0]]:.1f}"] for line in body]
    return tabulate(body, headers, tablefmt="github", disable_numparse=True, stralign="right")


def _number(cell: Cell, measured: Measured) -> str:
    places = {"rho_adv": 3, "mean_l2_distance": 3, "robustness_pct": 4}.get(cell.metric, 1)
    if math.isnan(measured.value):  # of no images
        return "none" if cell.paper is None else f"none ({cell.paper:g})"
    text = f"{measured.value:.{places}f}"
    if cell.paper is None:
        return text
    return f"{text} ({cell.paper:g}, {measured.value - cell.paper:+.{places}f})"


def _printed(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.cell.paper is not None]


def _transposed(entries: Sequence[Entry]) -> list[Entry]:
    """The cells where this reading has them: each beside what the paper prints in that place."""
    printed = {(cell.row, str(cell.source)): cell.paper for cell, _ in entries}
    moved = []
    for cell, measured in entries:
        row, column, paper_s = str(cell.source), f"tested on {cell.row}", printed[str(cell.source), cell.row]
        moved.append(Entry(replace(cell, row=row, column=column, paper=paper_s), measured))
    return moved


def _flags(entries: Sequence[Entry]) -> str:
    """Rows in which another network's images do more harm than the network's own: the sign of masked gradients."""
    lines = []
    for row in dict.fromkeys(entry.cell.row for entry in entries):
        values = {str(entry.cell.source): entry.measured.value for entry in entries if entry.cell.row == row}
        worst = min(values, key=lambda source: values[source])
        if values[worst] < values[row]:
            lines.append(
                f"{row}: masked? crafted on {worst}, images leave {values[worst]:.1f} %, its own {values[row]:.1f} %"
            )
    return "\n".join(lines)


def _picture(path: Path, number: int, lab: Lab, entries: Sequence[Entry]) -> None:
    """Curves where a table has a radius or a ratio, a matrix for transfer, bars for the rest."""
    panels: dict[str, list[Entry]] = {}
    for entry in entries:
        panels.setdefault(_name(entry.cell.dataset, lab), []).append(entry)
    if number in (7, 8):
        entries = _printed(entries)
        methods = list(dict.fromkeys(cell.row for cell, _ in entries))
        values = np.array([measured.value for _, measured in entries]).reshape(len(methods), -1)
        printed = np.array([cell.paper for cell, _ in entries], float).reshape(values.shape)
        figures.matrix(path, _title(number), methods, {"ours": values, "the paper's": printed})
    elif number in (3, 11, 12, 13):
        figures.bars(path, _title(number), {name: _bars(mine) for name, mine in panels.items()})
    else:
        figures.curves(path, _title(number), {name: _curves(mine) for name, mine in panels.items()})


def _bars(entries: Sequence[Entry]) -> dict[str, Any]:
    shown = [entry for entry in entries if entry.cell.attack != "none" and entry.cell.metric != "success_pct"]
    column = shown[0].cell.column
    rows = {cell.row: (measured.value, cell.paper) for cell, measured in shown if cell.column == column}
    return {"y": f"accuracy, %, {column}" if "accuracy" in shown[0].cell.metric else column, "rows": rows}


def _curves(entries: Sequence[Entry]) -> dict[str, Any]:
    lines: dict[tuple[str, str], dict[float, float]] = {}
    by_ratio = any(cell.ratio is not None for cell, _ in entries)
    for cell, measured in entries:
        if cell.attack in ("none", "fgsm", "substitute", "deepfool") and "accuracy" in cell.metric:
            setting = cell.ratio if cell.ratio is not None else cell.epsilon
            for whose, value in (("ours", measured.value), ("paper", cell.paper)):
                if value is not None:
                    lines.setdefault((cell.row, whose), {})[setting] = value
    x = "largest residue ratio d" if by_ratio else "ε (L∞ radius, images in [0, 1])"
    return {"x": x, "y": "accuracy, %", "lines": lines}


def _csv(entries: Sequence[Entry]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["table", "dataset", "row", "column", "metric", "ours", "paper", "difference", "images"])
    for cell, measured in entries:
        difference = None if cell.paper is None else measured.value - cell.paper
        writer.writerow([cell.table, cell.dataset, cell.row, cell.column, cell.metric, measured.value, cell.paper,
                         difference, measured.images])  # fmt: skip
    return text.getvalue()


def _json(number: int, lab: Lab, entries: Sequence[Entry]) -> dict[str, Any]:
    cells = [{**asdict(cell), "ours": measured.value, "images": measured.images, **measured.notes}
             for cell, measured in entries]  # fmt: skip
    kept = [{key: value for key, value in cell.items() if value is not None and value == value} for cell in cells]
    datasets = dict.fromkeys(cell.dataset for cell, _ in entries)
    epochs = {dataset: lab.scale.config(dataset, lab.changes).epochs for dataset in datasets}
    return {"table": number, "scale": lab.scale.name, "seed": lab.seed, "epochs": epochs, "changes": lab.changes,
            "environment": report(), "cells": kept}  # fmt: skip
