"""Bars: speed-ups over every peer, and peak memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from reading import NAMES, Record, Row, arrows, by_workload, ratio, select
from style import COLORS, STEPS, NotMeasured, timing, title

PEERS = [name for name in COLORS if name != "ccn"]
MEMORY = {  # provider and variant
    "two-branch": ("two_branch", ("ones", "pool"), COLORS["two_branch"]),
    "ccn_kernels, ReLU apart": ("ccn", ("relu apart",), COLORS["conv_nobias"]),
    "ccn_kernels": ("ccn", (None,), COLORS["ccn"]),
}
WIDTH = 9.5  # inches, of all pictures
FEW = 7  # groups whose labels and numbers find room

Series = dict[str, tuple[Sequence[float | None], str]]  # heights and colour, by name


def speedup(record: Record) -> Figure:
    """Time of each peer over ours, each at its fastest form and memory format."""
    panels = {step: by_workload(record.main_rows("kernel-notes", step)) for step in STEPS}
    keys = list(dict.fromkeys(key for panel in panels.values() for key in panel))
    drawn = {step: speedups([panel.get(key, []) for key in keys]) for step, panel in panels.items()}
    if not any(drawn.values()):
        raise NotMeasured("kernel-notes rows of ccn beside a peer")
    figure = Figure(figsize=(WIDTH, 11), layout="constrained")
    figure.suptitle(title(record, "Time of each peer / time of ccn_kernels (above 1, ours is faster)", timing(record)))
    axes = figure.subplots(2, 1, sharex=True)
    for axis, (step, series) in zip(axes, drawn.items(), strict=True):
        group_bars(axis, [name(*key) for key in keys], series)
        axis.set_title(STEPS[step], loc="left")
        axis.set_ylabel("speed-up")
    handles = {text: handle for axis in axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2)
    return figure


def speedups(workloads: list[list[Row]]) -> Series:
    """By peer, those that were measured anywhere."""
    heights = {peer: [ratio(rows, peer, "ccn") for rows in workloads] for peer in PEERS}
    return {NAMES[peer]: (found, COLORS[peer]) for peer, found in heights.items() if any(found)}


def name(workload: str, batch: int) -> str:
    return f"{arrows(workload)}\nN = {batch}"


def group_bars(axis: Any, labels: Sequence[str], series: Series, *, numbers: bool = False) -> None:
    """A group a label; the line at 1 is where both are equal."""
    width = 0.84 / max(1, len(series))
    for place, (text, (heights, color)) in enumerate(series.items()):
        at = [group + (place - (len(series) - 1) / 2) * width for group in range(len(labels))]
        shown = [height or 0 for height in heights]
        drawn = axis.bar(at, shown, width, color=color, edgecolor="white", linewidth=0.5, label=text)
        if numbers:
            axis.bar_label(drawn, [f"{height:.2f}" if height else "" for height in heights], fontsize=10)
    many = len(labels) > FEW
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if many else {}
    axis.set_xticks(range(len(labels)), [text.replace("\n", ", ") if many else text for text in labels], **turned)
    axis.axhline(1, color="black", linewidth=1.2)
    axis.grid(axis="y", alpha=0.35)
    axis.margins(x=0.01)


def memory(record: Record) -> Figure:
    """Peak memory over the plain layer's or network's, whose megabytes stand beneath."""
    panels = {
        "networks": {**peaks(record, "networks", "forward"), **peaks(record, "networks", "training")},
        "layers, training step": peaks(record, "kernel-notes", "training", layers=True),
    }
    panels = {text: panel for text, panel in panels.items() if panel}
    if not panels:
        raise NotMeasured("peak memory of ccn beside conv")
    height = 1 + sum(5 if len(panel) <= FEW else 6.5 for panel in panels.values())
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(title(record, "Peak memory / that of plain convolution"))
    for axis, (text, panel) in zip(figure.subplots(len(panels), 1, squeeze=False).flat, panels.items(), strict=True):
        heights = {form: [group.get(form) for group in panel.values()] for form in MEMORY}
        series = {form: (found, MEMORY[form][2]) for form, found in heights.items() if any(found)}
        group_bars(axis, list(panel), series, numbers=len(panel) <= FEW)
        axis.set_title(text, loc="left")
        axis.set_ylabel("times plain")
        axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(series), frameon=False)
    return figure


def peaks(record: Record, suite: str, step: str, *, layers: bool = False) -> dict[str, dict[str, float]]:
    """By workload, the ratios of MEMORY's forms to the plain one's peak."""
    rows = select(record.rows, {"suite": suite, "pass": step, "dtype": record.dtype})
    found = {}
    for (workload, batch), group in by_workload(rows).items():
        plain = peak(group, "conv", (None,))
        ratios = {form: peak(group, *who) / plain for form, (*who, _) in MEMORY.items() if plain and peak(group, *who)}
        if ratios:
            text = name(workload, batch) if layers else f"{workload}\n{STEPS[step]}"
            found[f"{text}\n{plain:.0f} MB"] = ratios
    return found


def peak(rows: list[Row], provider: str, variants: Sequence[str | None]) -> float | None:
    """The least over forms and memory formats, in megabytes."""
    known = [row["peak_mb"] for row in rows if row["provider"] == provider and row["variant"] in variants]
    return min((megabytes for megabytes in known if megabytes), default=None)
