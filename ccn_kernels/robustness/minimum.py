"""A table's cells set against one another: the minimum over attacks, and weaker ones that do more harm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

from .lab import Measured
from .paper import Cell

STRENGTH = {"substitute": 0, "transfer": 0, "fgsm": 1, "pgd": 2, "deepfool_2018": 1, "deepfool": 2}
NAMES = {"fgsm": "FGSM", "pgd": "PGD", "deepfool": "DeepFool", "deepfool_2018": "DeepFool's form of 2018",
         "substitute": "a substitute's FGSM"}  # fmt: skip


class Entry(NamedTuple):
    """A cell and our number for it."""

    cell: Cell
    measured: Measured


def lowered(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, their minima taken over the attacks of the same row and radius too, on the images that all saw."""
    found = []
    for cell, measured in entries:
        if cell.attack == "minimum":
            others = [other for other in entries if other.cell.attack != "minimum" and _alike(cell, other.cell)]
            for other in others:
                if measured.held.keys() & other.measured.held.keys():
                    measured = _both(measured, other.measured)
        found.append(Entry(cell, measured))
    return found


def flags(entries: Sequence[Entry]) -> list[str]:
    """A line for each pair of attacks on a network of which the weaker does more harm, on the images that both saw."""
    lines = []
    ranked = sorted((entry for entry in entries if entry.cell.attack in STRENGTH), key=_strength)
    for one, other in combinations(ranked, 2):
        if _strength(one) < _strength(other) and _alike(one.cell, other.cell) and _comparable(one, other):
            weak, strong = _on_common_images(one, other)
            if _harm(one.cell, weak) > _harm(other.cell, strong):
                lines.append(_line(one.cell, other.cell, weak, strong))
    return lines


def _strength(entry: Entry) -> int:
    return STRENGTH[entry.cell.attack]


def _line(weak: Cell, strong: Cell, left_by_weak: float, left_by_strong: float) -> str:
    where = next((f", {text}" for text in (weak.column, strong.column) if "=" in text), "")
    name = f"{weak.source}'s FGSM" if weak.attack == "transfer" else NAMES[weak.attack]
    unit = " %" if "accuracy" in weak.metric else ""
    return (f"{weak.row}{where}: masked? {name} leaves {left_by_weak:.3g}{unit}, {NAMES[strong.attack]}, which is "
            f"stronger, {left_by_strong:.3g}{unit}")  # fmt: skip


def _harm(cell: Cell, value: float) -> float:
    """Accuracies and distances that attacks need are lower where they do more."""
    return value if cell.metric == "success_pct" else -value


def _comparable(one: Entry, other: Entry) -> bool:
    """Whether there are images that both saw."""
    held, held_there = one.measured.held, other.measured.held
    return bool(held.keys() & held_there.keys()) or (not held and one.measured.images == other.measured.images)


def _on_common_images(one: Entry, other: Entry) -> tuple[float, float]:
    held, held_there = one.measured.held, other.measured.held
    common = held.keys() & held_there.keys()
    if not common:
        return one.measured.value, other.measured.value
    return _percent([held[index] for index in common]), _percent([held_there[index] for index in common])


def _both(measured: Measured, other: Measured) -> Measured:
    held = {index: holds and other.held[index] for index, holds in measured.held.items() if index in other.held}
    return replace(measured, value=_percent(list(held.values())), images=len(held), held=held)


def _percent(flags: Sequence[bool]) -> float:
    return 100 * sum(flags) / len(flags)


def _alike(one: Cell, other: Cell) -> bool:
    """Of the same network, radius and measure."""
    places = [(cell.dataset, cell.row, cell.epsilon, cell.ratio, cell.metric, cell.adversarial_epsilon)
              for cell in (one, other)]  # fmt: skip
    return places[0] == places[1]
