"""Cost as work grows: layers along four axes around a middle point, and where a curve leaves its neighbours' trend."""

from __future__ import annotations

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from ..workloads import Layer

SETTING = ("suite", "pass", "timing", "dtype", "memory_format")
Row = dict[str, Any]
Curve = dict[int, float]  # size on the axis: cost

VALUES = {
    "batch": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    "image": (8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 224),
    "channels": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    "kernel": (1, 2, 3, 5, 7, 9, 11),
}
MIDDLE = {"image": 32, "channels": 64, "kernel": 3}
# What stays as it is along an axis. A CPU's middle is smaller: no plain forward pass takes it more than half a second.
MIDDLES = {
    "cuda": {axis: MIDDLE | {"batch": 128} for axis in VALUES},
    "cpu": {
        "batch": MIDDLE,
        "image": MIDDLE | {"batch": 8},
        "channels": MIDDLE | {"batch": 8, "image": 16},
        "kernel": MIDDLE | {"batch": 32},
    },
}
STEEP = 1.5


def suites(device: str) -> dict[str, tuple[Layer, ...]]:
    """By suite name. Layers of one suite may share a name and differ in their batch."""
    middles = MIDDLES[device]
    return {
        f"growth-{axis}": tuple(_layer(**(middles[axis] | {axis: value})) for value in values)
        for axis, values in VALUES.items()
    }


def _layer(batch: int, image: int, channels: int, kernel: int) -> Layer:
    name = f"{channels}-{channels}@{image}" + ("" if kernel == 3 else f" {kernel}x{kernel}")
    return Layer(name, batch, channels, channels, image, kernel=kernel, padding=kernel // 2)


def size(row: Row) -> int:
    """Where a row lies on its suite's axis."""
    channels, image, kernel = re.match(r"(\d+)-\d+@(\d+)(?: (\d+)x)?", row["workload"]).groups()  # type: ignore[union-attr]
    found = {"batch": row["batch"], "image": image, "channels": channels, "kernel": kernel or 3}
    return int(found[row["suite"].removeprefix("growth-")])


def cliffs(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Points above ``STEEP`` times what their neighbours on both sides promise, interpolated on logarithmic scales.

    Each is a dict of suite, size, pass, timing, dtype and memory_format; ``kind``, either "cost" (time per floor of
    ``provider``) or "ratio" (ccn's time to conv's); ``excess``, how many times above the trend; and ``beside``, plain
    convolution's own excess there: where that is steep too, the cliff is not ours.
    """
    found = []
    for setting, costs in _curves(rows).items():
        excesses = {("cost", provider): _excesses(curve) for provider, curve in costs.items()}
        plain, compact = costs.get("conv", {}), costs.get("ccn", {})
        excesses["ratio", "ccn"] = _excesses({at: compact[at] / plain[at] for at in plain.keys() & compact.keys()})
        beside = excesses.get(("cost", "conv"), {})
        found += [
            {
                **dict(zip(SETTING, setting, strict=True)),
                "kind": kind,
                "provider": provider,
                "size": at,
                "excess": excess,
                "beside": beside.get(at),
            }
            for (kind, provider), by_size in excesses.items()
            for at, excess in by_size.items()
            if excess > STEEP
        ]
    return found


def report(rows: Iterable[Row]) -> str:
    """The cliffs, a line each."""
    lines = [_line(cliff) for cliff in cliffs(rows)]
    return "\n".join(lines) or f"no point lies above {STEEP} times its neighbours' trend"


def _line(cliff: dict[str, Any]) -> str:
    axis = cliff["suite"].removeprefix("growth-")
    where = f"{axis} {cliff['size']}, {cliff['pass']}, {cliff['timing']}, {cliff['dtype']}, {cliff['memory_format']}"
    if cliff["kind"] == "ratio":
        return f"{where}: ccn to conv is {cliff['excess']:.2f} times its neighbours' ratio"
    line = f"{where}: {cliff['provider']} costs {cliff['excess']:.2f} times its neighbours' trend"
    if cliff["provider"] == "conv" or cliff["beside"] is None:
        return line
    return f"{line}; plain convolution {cliff['beside']:.2f} times" + (" as well" if cliff["beside"] > STEEP else "")


def _curves(rows: Iterable[Row]) -> dict[tuple[str, ...], dict[str, Curve]]:
    """Time per floor, by provider. Rows without a time leave gaps; variants (a second measurement) do not count."""
    curves: dict[tuple[str, ...], dict[str, Curve]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row["suite"].startswith("growth-") and row["median_us"] and row["variant"] is None:
            setting = tuple(row[name] for name in SETTING)
            curves[setting][row["provider"]][size(row)] = row["median_us"] / row["floor_us"]
    return curves


def _excesses(curve: Curve) -> Curve:
    """How many times each inner point lies above the line between its neighbours (both axes logarithmic)."""
    points = sorted(curve)
    found = {}
    for before, at, after in zip(points, points[1:], points[2:], strict=False):
        share = math.log(at / before) / math.log(after / before)
        trend = math.exp(
            statistics.fmean([math.log(curve[before]), math.log(curve[after])], weights=[1 - share, share])
        )
        found[at] = curve[at] / trend
    return found
