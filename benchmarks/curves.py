"""The roofline, and cost as work grows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from bars import WIDTH
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, Formatter, FuncFormatter, NullFormatter, NullLocator
from reading import NAMES, Record, Row, by_workload, channels, fastest
from style import COLORS, STEPS, NotMeasured, timing, title

MARKERS = {"conv": "s", "two_branch": "^", "ccn": "o"}
LAYER_SUITES = ("kernel-notes", "vgg11", "vgg11-table10", "resnet50", "mnist", "grouped", "linear")
LINES = {"forward": "-", "training": "--"}
AXES = {"batch": "batch", "image": "image size", "channels": "channels, in and out", "kernel": "kernel size"}
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
RATE = EngFormatter("FLOP/s")


def roofline(record: Record) -> Figure:
    """Arithmetic rate against arithmetic intensity, under the ceilings measured in the same run."""
    points = {provider: list(intensities(record, provider)) for provider in MARKERS}
    ceilings = record.environment["ceilings"]
    peak, bandwidth = ceilings["flop_per_s"].get(record.dtype), ceilings["bytes_per_s"]
    if not points["ccn"] or not peak:
        raise NotMeasured("forward rows of ccn with a ceiling of their dtype")
    figure = Figure(figsize=(WIDTH, 7.5), layout="constrained")
    figure.suptitle(title(record, "Roofline, forward pass", timing(record)))
    axis = figure.subplots()
    every = [x for found in points.values() for x, _ in found]
    low, high = min([*every, peak / bandwidth]) / 2, max([*every, peak / bandwidth]) * 2
    corners = [low, peak / bandwidth, high]
    known = f"measured: {EngFormatter('B/s', places=0)(bandwidth)}, {EngFormatter('FLOP/s', places=0)(peak)}"
    axis.plot(corners, [min(peak, x * bandwidth) for x in corners], color="black", label=known)
    for provider, found in points.items():
        look = {"color": COLORS[provider], "markersize": 9, "alpha": 0.85, "markeredgecolor": "white"}
        axis.plot(*zip(*found, strict=True), MARKERS[provider], label=NAMES[provider], **look) if found else None
    axis.set(xscale="log", yscale="log", xlim=(low, high))
    whole_decades(axis, RATE)
    axis.xaxis.set_major_formatter(PLAIN)
    axis.set_xlabel("FLOP per byte of input, weight and output, each moved once")
    axis.set_ylabel("FLOP/s, the convolution's own")
    axis.grid(which="both", alpha=0.25)
    axis.legend(loc="lower right")
    return figure


def whole_decades(axis: Any, formatter: Formatter) -> None:
    """Within less than a decade the ticks would be odd numbers."""
    low, high = axis.get_ylim()
    axis.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))
    axis.yaxis.set(major_formatter=formatter, minor_formatter=NullFormatter())


def intensities(record: Record, provider: str) -> Iterable[tuple[float, float]]:
    for suite in LAYER_SUITES:
        for rows in by_workload(record.main_rows(suite, "forward")).values():
            row = fastest(rows, provider)
            if row:
                yield row["flop"] / row["bytes"], 1e6 * row["flop"] / row["median_us"]


def growth(record: Record) -> Figure:
    """Time and peak memory of plain convolution and ours along four axes."""
    measured = [along for along in AXES if any(rows_with_times(record, along))]
    if not measured:
        raise NotMeasured("growth rows")
    figure = Figure(figsize=(WIDTH, 1.5 + 3.4 * len(measured)), layout="constrained")
    figure.suptitle(title(record, "Cost as work grows", timing(record)))
    for row, along in zip(figure.subplots(len(measured), 2, squeeze=False), measured, strict=True):
        each = curves(row, record, along)
        for axis, unit in zip(row, ("time, ms", "peak memory, MB"), strict=True):
            axis.set(title=f"by {AXES[along]}", ylabel=f"{unit}{each}")
            whole_decades(axis, PLAIN)
            axis.grid(alpha=0.3)
    known = {
        text: handle for axis in figure.axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(known.values(), known, loc="outside lower center", ncols=2)
    return figure


def rows_with_times(record: Record, along: str) -> Iterable[Row]:
    for step in LINES:
        yield from (row for row in record.main_rows(f"growth-{along}", step) if row["median_us"])


def curves(row: Sequence[Any], record: Record, along: str) -> str:
    """Of both providers and passes: time, and memory beside it; where batches differ, an image's, which it says."""
    panels = {step: by_workload(record.main_rows(f"growth-{along}", step)) for step in LINES}
    keys = {key for panel in panels.values() for key in panel}
    mixed = along != "batch" and len({batch for _, batch in keys}) > 1
    for provider in ("conv", "ccn"):
        for step, line in LINES.items():
            points = sorted(points_of(panels[step], along, provider, mixed))
            look = {
                "color": COLORS[provider],
                "marker": MARKERS[provider],
                "label": f"{NAMES[provider]}, {STEPS[step]}",
            }
            for axis, number in zip(row, (1, 2), strict=True):
                axis.plot([point[0] for point in points], [point[number] for point in points], line, **look)
    ticks = sorted({size(key, along) for key in keys})
    for axis in row:
        axis.set(xscale="log", yscale="log")
        axis.xaxis.set(major_locator=FixedLocator(ticks), minor_locator=NullLocator(), major_formatter=PLAIN)
        axis.tick_params(axis="x", rotation=90 if len(ticks) > 6 else 0)
    return " an image" if mixed else ""


def points_of(
    panel: dict[tuple[str, int], list[Row]], along: str, provider: str, mixed: bool
) -> Iterable[tuple[int, float, float]]:
    """Size, milliseconds, megabytes."""
    for key, rows in panel.items():
        row = fastest(rows, provider)
        if row:
            images = row["batch"] if mixed else 1
            yield size(key, along), row["median_us"] / 1e3 / images, row["peak_mb"] / images


def size(key: tuple[str, int], axis: str) -> int:
    """Where a workload lies on an axis, from a name like "64-64@32 5x5" (3x3 goes without saying)."""
    workload, batch = key
    if axis == "batch":
        return batch
    if axis == "channels":
        return channels(workload)[1]
    pattern = r"@(\d+)" if axis == "image" else r"\b(?:k|\d+x)(\d+)\b"
    found = re.search(pattern, workload)
    if found is None and axis == "image":
        raise ValueError(f"workload {workload!r} does not name its image's size")
    return int(found[1]) if found else 3
