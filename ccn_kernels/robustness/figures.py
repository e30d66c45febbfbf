"""Pictures, by matplotlib, without a screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from torch import Tensor

from ..files import write

matplotlib.use("agg")
COLORS = {"SM": "#7f7f7f", "CCN": "#1f77b4", "CCN+LS": "#d62728"}


def demo_figure(path: Path, title: str, curves: dict[str, dict[str, Any]], digits: dict[str, tuple[Tensor, list[str]]],
                epsilon: float) -> None:  # fmt: skip
    """Accuracy against epsilon for each network, and beneath it each network's adversarial digits.

    Args:
        curves: per network: "clean", in percent, and "fgsm" and "pgd", each {epsilon: accuracy in percent}.
        digits: per network: images [N, 1, H, W] and a caption for each.
        epsilon: that of the images.
    """
    count = len(next(iter(digits.values()))[1])
    figure = Figure(figsize=(9, 8.2), layout="constrained")
    upper, lower = list(figure.subfigures(2, 1, squeeze=False, height_ratios=[1.15, 1]).flat)
    _plot_curves(upper.subplots(), title, curves)
    lower.suptitle(f"FGSM at ε = {epsilon:g} against each network: what it now sees (true → predicted)", fontsize=11)
    grid = lower.subplots(len(digits), count)
    for row, (name, (images, captions)) in zip(grid, digits.items(), strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=11, color=COLORS[name])
        for axis, image, caption in zip(row, images, captions, strict=True):
            axis.imshow(image[0], cmap="gray", vmin=0, vmax=1)
            wrong = caption[0] != caption[-1]
            axis.set_title(caption, fontsize=9, color="#d62728" if wrong else "#2ca02c", pad=2)
            axis.set(xticks=[], yticks=[])
    write(path, lambda temporary: figure.savefig(temporary, dpi=110))


def _plot_curves(axis: Any, title: str, curves: dict[str, dict[str, Any]]) -> None:
    for name, attacks in curves.items():
        for attack, style, label in (("fgsm", "o-", f"{name}, FGSM"), ("pgd", "x:", f"{name}, PGD")):
            points = sorted({0.0: attacks["clean"], **attacks[attack]}.items())
            axis.plot(*zip(*points, strict=True), style, color=COLORS[name], label=label)
    axis.set(xlabel="ε (L∞ radius, images in [0, 1])", ylabel="accuracy under attack, %", ylim=(-2, 102), title=title)
    axis.grid(alpha=0.3)
    axis.legend(ncols=3, fontsize=9)
