"""The CPU targets, judged from a record: ratios to F.conv2d, each in its faster memory format."""

from __future__ import annotations

import statistics
from typing import NamedTuple

from reading import Record, by_workload, channels, ratio


class Target(NamedTuple):
    """``met`` is None where nothing was measured."""

    name: str
    goal: str
    measured: str
    met: bool | None


# Input channels (at least, or exactly), pass, the geometric mean's bound, and that of the worst.
WIDE = 64
GOALS = (
    ("Cin ≥ 64", "forward", 1.03, 1.08),
    ("Cin ≥ 64", "training", 1.05, None),
    ("32→32@28", "forward", 1.12, None),
    ("32→32@28", "training", 1.20, None),
    ("3→64@32", "forward", 1.5, None),
    ("3→64@32", "training", 1.4, None),
)


def targets(record: Record) -> list[Target]:
    return [judge(record, name, step, bound, worst) for name, step, bound, worst in GOALS]


def judge(record: Record, name: str, step: str, bound: float, worst: float | None) -> Target:
    goal = f"≤ {bound:g}" + (f", none above {worst:g}" if worst else "")
    ratios = [
        found
        for (workload, _), rows in by_workload(record.main_rows("kernel-notes", step)).items()
        if belongs(workload, name) and (found := ratio(rows, "ccn", "conv")) is not None
    ]
    title = f"{name}, {step}"
    if not ratios:
        return Target(title, goal, "not measured", None)
    mean, largest = statistics.geometric_mean(ratios), max(ratios)
    measured = f"{mean:.2f}" + (f" (worst {largest:.2f})" if len(ratios) > 1 else "")
    return Target(title, goal, measured, mean <= bound and (worst is None or largest <= worst))


def belongs(workload: str, name: str) -> bool:
    if name.startswith("Cin"):
        return channels(workload)[0] >= WIDE
    return name.replace("→", "-") in workload
