"""The GPU targets of KERNEL-NOTES, judged by the record and by what lies beside it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from ccn_kernels.bench.record import JOB, Row
from ccn_kernels.bench.tell import markdown

from .record import Record

Who = tuple[str, str | None]  # provider and variant
Cases = dict[str, dict[Who, Row]]  # by workload
Target = tuple[str, str, str, bool | None]

SHARES = {"Cin = 3": 80, "Cout >= 256": 65, "Cout = 128": 55, "Cout = 64": 40}  # percent of the floor
CONV, OURS, CUDA = ("conv", None), ("ccn", None), ("ccn_cuda", None)
TWO_BRANCH = (("two_branch", "ones"), ("two_branch", "pool"))
EAGER = (*TWO_BRANCH, ("two_branch", None))  # a linear layer's has one form
MAX_AUTOTUNE = ("two_branch_max_autotune", "pool")


def targets(rows: list[Row], diagnostics: Record) -> str:
    """A Markdown table: goal, what was measured, and whether it is met."""
    found = [*speeds(rows), *own_kernels(rows), *compilers(rows), *shares(rows), *costs(rows, diagnostics)]
    lines = [[name, goal, text, None if met is None else "yes" if met else "no"] for name, goal, text, met in found]
    return markdown(["target", "goal", "measured", "met"], lines)


def target(name: str, goal: float, values: list[float], *, most: bool = True, worst: float | None = None) -> Target:
    """Judges a geometric mean (``most``: it may be at most the goal) and, if a bound is named, the worst value."""
    sign = "<=" if most else ">="
    text = f"{sign} {goal}" + (f", none {'above' if most else 'below'} {worst}" if worst is not None else "")
    if not values:
        return name, text, "not measured", None
    mean, extreme = statistics.geometric_mean(values), max(values) if most else min(values)
    met = mean <= goal if most else mean >= goal
    if worst is not None:
        met = met and (extreme <= worst if most else extreme >= worst)
    return name, text, f"{mean:.3f} (worst {extreme:.3f} of {len(values)})", met


def cases(rows: Iterable[Row], which: str, timing: str = "graph") -> Cases:
    """The shapes that the targets name: bf16, channels_last."""
    found: Cases = {}
    for row in rows:
        at = (row["suite"], row["pass"], row["timing"], row["dtype"], row["memory_format"])
        if at == ("kernel-notes", which, timing, "bfloat16", "channels_last") and row["median_us"] is not None:
            found.setdefault(row["workload"], {})[row["provider"], row["variant"]] = row
    return found


def everywhere(rows: Iterable[Row], which: str) -> dict[tuple, dict[Who, Row]]:
    """Every measurement of a pass: any suite, dtype, format, and timing."""
    found: dict[tuple, dict[Who, Row]] = {}
    for row in rows:
        if row["pass"] == which and row["median_us"] is not None:
            found.setdefault(tuple(row[name] for name in (*JOB, "timing")), {})[row["provider"], row["variant"]] = row
    return found


def ratios(found: Mapping[Any, dict[Who, Row]], above: Iterable[Who], below: Iterable[Who]) -> list[float]:
    """Of the fastest of either side, where both were measured."""
    above, below = list(above), list(below)
    pairs = [(fastest(by, above), fastest(by, below)) for by in found.values()]
    return [a / b for a, b in pairs if a is not None and b is not None]


def fastest(by: dict[Who, Row], whom: Iterable[Who]) -> float | None:
    return min((by[who]["median_us"] for who in whom if who in by), default=None)


def speeds(rows: list[Row]) -> list[Target]:
    forward, training = cases(rows, "forward"), cases(rows, "training")
    found = [
        target("forward / nn.Conv2d(bias=True)", 0.85, ratios(forward, [OURS], [CONV]), worst=1.2),
        target("forward / convolution without bias", 1.0, ratios(forward, [OURS], [("conv_nobias", None)])),
        target("forward + backward / nn.Conv2d(bias=True)", 1.0, ratios(training, [OURS], [CONV])),
        target("the same, each with ReLU", 1.0, ratios(training, [("ccn", "relu")], [("conv", "relu")])),
    ]
    for timing in ("graph", "eager"):
        for which, goal in (("forward", 4.0), ("training", 3.0)):
            values = ratios(cases(rows, which, timing), TWO_BRANCH, [OURS])
            found.append(target(f"two-branch eager / ours, {which}, {timing}", goal, values, most=False))
    noise = target("", 1.0, ratios(forward, [("conv", "again")], [CONV]))[2]
    return [*found, ("conv, measured twice", "", noise, None)]


def own_kernels(rows: list[Row]) -> list[Target]:
    """Of the CUDA C++ backend, on every shape; beside the two-branch module on all that both have run."""
    found = []
    for which in ("forward", "training"):
        times = cases(rows, which)
        found.append(target(f"ccn_cuda / ccn, {which}", 1.5, ratios(times, [CUDA], [OURS]), worst=1.5))
        if which == "forward":
            found.append(target("ccn_cuda / nn.Conv2d(bias=True)", 1.3, ratios(times, [CUDA], [CONV]), worst=1.3))
        values = ratios(everywhere(rows, which), [CUDA], EAGER)
        found.append(target(f"ccn_cuda / two-branch eager, {which}, everywhere", 1.0, values, worst=1.0))
    return found


def compilers(rows: list[Row]) -> list[Target]:
    return [
        target(f"max-autotune / ours, {which}", goal, ratios(cases(rows, which), [MAX_AUTOTUNE], [OURS]), most=False)
        for which, goal in (("forward", 1.35), ("training", 1.25))
    ]


def shares(rows: list[Row]) -> list[Target]:
    classes: dict[str, list[float]] = {name: [] for name in SHARES}
    for name, by in cases(rows, "forward").items():
        if OURS in by and class_of(name) in classes:
            classes[class_of(name)].append(100 * by[OURS]["share_of_floor"])
    return [
        target(f"percent of the floor, {name}", goal, classes[name], most=False, worst=goal)
        for name, goal in SHARES.items()
    ]


def class_of(workload: str) -> str:
    """Of "3-64@32": a first layer, or its output channels."""
    inputs, outputs = (int(part) for part in workload.split("@")[0].split("-"))
    return "Cin = 3" if inputs == 3 else "Cout >= 256" if outputs >= 256 else f"Cout = {outputs}"


def costs(rows: list[Row], diagnostics: Record) -> list[Target]:
    """The sum of squares, the memory of a training step, the host."""
    return [
        target("kernel / the same without squares", 1.03, squares(diagnostics)),
        target("peak memory of a training step / plain", 1.05, memory(rows, None)),
        target("the same, ReLU apart", 1.05, memory(rows, "relu apart")),
        target("host time / F.conv2d, no grad", 1.5, host(diagnostics)),
    ]


def squares(diagnostics: Record) -> list[float]:
    """Of the default tiles, wherever they find their squares."""
    found = []
    for row in diagnostics.rows("ablation").values():
        words = row.get("default tiles", {}).get("forward", "").split()
        way = next((name for name in ("rows", "images", "loop") if name in words), "plane")
        pair = [median(row.get("providers", {}), name, "replayed") for name in (way, "none")]
        found += [pair[0] / pair[1]] if all(pair) else []
    return found


def memory(rows: list[Row], variant: str | None) -> list[float]:
    steps = {(row["provider"], row["variant"]): row["peak_mb"] for row in rows
             if (row["workload"], row["pass"], row["timing"], row["dtype"])
             == ("vgg11", "training", "eager", "bfloat16")}  # fmt: skip
    ours, plain = steps.get(("ccn", variant)), steps.get(CONV)
    return [ours / plain] if ours and plain else []


def host(diagnostics: Record) -> list[float]:
    calls = diagnostics.rows("host").get("forward, no grad", {}).get("providers", {})
    pair = [median(calls, name, "called") for name in ("ours, compact_conv2d", "conv, F.conv2d")]
    return [pair[0] / pair[1]] if all(pair) else []


def median(providers: dict[str, dict[str, Any]], name: str, way: str) -> Any:
    """Of a contender that ran and was right."""
    return providers.get(name, {}).get(way, {}).get("median")
