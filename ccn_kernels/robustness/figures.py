"""Pictures, by matplotlib, without a screen. Colours are Okabe and Ito's: they stay apart for every kind of eye."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ..files import write

matplotlib.use("agg")

# method: colour, marker
STYLES = {
    "SM": ("#000000", "o"),
    "LS": ("#E69F00", "s"),
    "BReLU": ("#009E73", "^"),
    "L2SM": ("#56B4E9", "D"),
    "CCN": ("#0072B2", "v"),
    "CCN+LS": ("#D55E00", "P"),
    "BN": ("#CC79A7", "X"),
    "LRN": ("#999999", "*"),
}
CLASSES = (*(color for color, _ in STYLES.values()), "#F0E442", "#882255")  # ten
WRONG, RIGHT = "#D55E00", "#0072B2"
DPI = 150


def save(figure: Figure, path: Path) -> Path:
    write(path, lambda temporary: figure.savefig(temporary, dpi=DPI))
    return path


def captions(true: Tensor, seen: Tensor) -> list[str]:
    """ "true→seen" for each image."""
    return [f"{one}→{other}" for one, other in zip(true.tolist(), seen.tolist(), strict=True)]


def samples(path: Path, title: str, rows: Mapping[str, tuple[Tensor, Sequence[str]]]) -> Path:
    """Images by row, each with a caption "true→predicted": figure 1.

    Args:
        rows: per row: images [N, C, H, W] in [0, 1] and a caption for each.
    """
    count = len(next(iter(rows.values()))[1])
    figure = Figure(figsize=(0.9 * count + 1.2, 1.15 * len(rows) + 0.5), layout="constrained")
    figure.suptitle(title, wrap=True)
    draw_samples(figure, rows)
    return save(figure, path)


def draw_samples(figure: Any, rows: Mapping[str, tuple[Tensor, Sequence[str]]]) -> None:
    count = len(next(iter(rows.values()))[1])
    grid = figure.subplots(len(rows), count, squeeze=False)
    for axes, (name, (images, captions)) in zip(grid, rows.items(), strict=True):
        axes[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
        for axis, image, caption in zip(axes, images.cpu(), captions, strict=True):
            axis.imshow(image.permute(1, 2, 0).squeeze(-1), cmap="gray", vmin=0, vmax=1)
            true, _, seen = caption.partition("→")
            axis.set_title(caption, fontsize=8, color=RIGHT if true == seen else WRONG, pad=2)
            axis.set(xticks=[], yticks=[])


def scatter(path: Path, title: str, panels: Mapping[tuple[str, str], np.ndarray], labels: np.ndarray) -> Path:
    """Points in the plane, coloured by class, in a grid of (row, column) panels: figures 2 and 5.

    Args:
        panels: (row, column): points [N, 2].
        labels: classes [N], ten at most.
    """
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*panels, strict=True))
    figure = Figure(figsize=(3.6 * len(columns) + 0.8, 3.4 * len(rows) + 0.6), layout="constrained")
    figure.suptitle(title, wrap=True)
    for axis, ((row, column), points) in zip(figure.subplots(len(rows), len(columns), squeeze=False).flat,
                                             panels.items(), strict=True):  # fmt: skip
        for label in np.unique(labels):
            chosen = points[labels == label]
            axis.scatter(*chosen.T, s=4, color=CLASSES[label], label=str(label), linewidths=0)
        axis.set(title=", ".join(filter(None, (row, column))), xticks=[], yticks=[])
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, title="class", loc="outside right center", markerscale=4)
    return save(figure, path)


def spectra(path: Path, title: str, panels: Mapping[str, Mapping[str, np.ndarray]]) -> Path:
    """Singular values, each as a share of the largest, in a panel a layer with a line a method: figure 6."""
    figure = Figure(figsize=(4 * len(panels), 3.8), layout="constrained")
    figure.suptitle(title, wrap=True)
    for axis, (layer, lines) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
        for name, values in lines.items():
            color, marker = STYLES[name]
            axis.semilogy(np.arange(1, len(values) + 1), values / values[0], color=color, marker=marker, markevery=7,
                          markersize=4, label=name)  # fmt: skip
        axis.set(title=layer, xlabel="index", ylabel="singular value / the largest")
        axis.grid(alpha=0.3)
    axis.legend()
    return save(figure, path)


def curves(path: Path, title: str, panels: Mapping[str, Any]) -> Path:
    """A panel a data set: lines against a setting, ours solid and the paper's dashed.

    Args:
        panels: per data set: "x" and "y", the axes' labels, and "lines", {(row, whose): {x: y}}.
    """
    figure = Figure(figsize=(6.4 * len(panels), 4.6), layout="constrained")
    figure.suptitle(title, wrap=True)
    for axis, (name, panel) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
        for (row, whose), line in panel["lines"].items():
            color, marker = STYLES.get(row, ("#999999", "."))
            style = {"ours": "-", "paper": ":"}[whose]
            label, points = row if whose == "ours" else None, sorted(line.items())
            axis.plot(*zip(*points, strict=True), style, color=color, marker=marker, markersize=5, label=label)
        axis.plot([], [], ":", color="#555555", label="the paper's")
        axis.set(title=name, xlabel=panel["x"], ylabel=panel["y"], ylim=(-2, 102))
        axis.grid(alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4 * len(panels))
    return save(figure, path)


def spreads(path: Path, title: str, radii: Sequence[float], panels: Mapping[str, Mapping[str, Any]]) -> Path:
    """Means over seeds against the radius; where there are two or more, with their standard deviation.

    Args:
        panels: per panel and line, a method's or another: accuracies in percent [seeds, radii].
    """
    columns = len(panels) if len(panels) < 4 else 2
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(0.6 + 4.8 * columns, 0.6 + 3.8 * rows), layout="constrained")
    figure.suptitle(title, wrap=True)
    mixed = [lines for lines in panels.values() if not lines.keys() <= STYLES.keys()]
    taken = {STYLES[name][0] for lines in mixed for name in lines if name in STYLES}
    free = cycle([color for color in CLASSES if color not in taken])
    styles = {**STYLES, **{name: (next(free), "o") for lines in mixed for name in lines if name not in STYLES}}
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, (name, lines) in zip(axes, panels.items(), strict=False):
        for label, seeds in lines.items():
            values, (color, marker) = np.array(seeds), styles[label]
            deviation = values.std(0, ddof=1) if len(values) > 1 else None
            axis.errorbar(radii, values.mean(0), deviation, label=label, color=color, marker=marker, markersize=5,
                          capsize=3)  # fmt: skip
        axis.set(title=name, xlabel="ε (L∞ radius, images in [0, 1])", ylabel="accuracy, %", ylim=(-2, 102))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return save(figure, path)


def bars(path: Path, title: str, panels: Mapping[str, Any]) -> Path:
    """A panel a data set: for each row a bar of ours and one of the paper's.

    Args:
        panels: per data set: "y", the axis's label, and "rows", {row: (ours, paper's or None)}.
    """
    figure = Figure(figsize=(6.4 * len(panels), 4.2), layout="constrained")
    figure.suptitle(title, wrap=True)
    for axis, (name, panel) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
        places = np.arange(len(panel["rows"]))
        ours, papers = zip(*panel["rows"].values(), strict=True)
        axis.bar(places - 0.2, ours, 0.4, color="#0072B2", label="ours")
        axis.bar(places + 0.2, [value or 0 for value in papers], 0.4, color="#E69F00", label="the paper's", hatch="//")
        axis.set_xticks(places, list(panel["rows"]), rotation=30, ha="right")
        axis.set(title=name, ylabel=panel["y"])
        axis.grid(axis="y", alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return save(figure, path)


def matrix(path: Path, title: str, names: Sequence[str], panels: Mapping[str, np.ndarray]) -> Path:
    """Accuracies in percent as shades, tested on by row, crafted on by column: tables 7 and 8."""
    figure = Figure(figsize=(5.4 * len(panels), 4.8), layout="constrained")
    figure.suptitle(title, wrap=True)
    for axis, (name, values) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
        image = axis.imshow(values, cmap="cividis", vmin=0, vmax=100)
        for (row, column), value in np.ndenumerate(values):
            axis.text(column, row, f"{value:.0f}", ha="center", va="center", color="w" if value < 55 else "k")
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axis.set_yticks(range(len(names)), names)
        axis.set(title=name, xlabel="crafted on", ylabel="tested on")
    figure.colorbar(image, ax=figure.axes, label="accuracy, %")
    return save(figure, path)
