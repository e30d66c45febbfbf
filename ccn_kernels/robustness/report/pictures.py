"""The page's pictures as data URIs: nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure

from .. import figures
from ..evaluation import percent
from .collect import Judgement

# Okabe and Ito's, as all our pictures; markers and dashes for those who see no colour
_STYLES = (("#E69F00", "s", "-"), ("#0072B2", "v", "-"), ("#009E73", "^", "-"), ("#56B4E9", "D", "--"),
           ("#CC79A7", "X", "--"), ("#999999", "*", "--"))  # fmt: skip
_AXES = {"linf": "ε (L∞ radius, images in [0, 1])", "l2": "ε (L2 radius, images in [0, 1])"}


class Curve(NamedTuple):
    """Accuracy in percent by radius, and how it is drawn."""

    label: str
    values: dict[float, float]
    style: dict[str, Any]


def curves(judged: Judgement, norm: str) -> str:
    """Accuracy against epsilon for each attack that saw whole images, and the minimum over all of them."""
    with rc_context({"svg.hashsalt": f"{judged.title}-{norm}", "font.size": 11}):
        figure = Figure(figsize=(5.6, 4.8), layout="constrained")
        axis = figure.subplots()
        for label, values, style in _lines(judged, norm):
            points = sorted({0.0: judged.clean, **values}.items())
            axis.plot(*zip(*points, strict=True), label=label, **style)
        axis.set(xlabel=_AXES[norm], ylabel="accuracy, %", ylim=(-2, 102))
        axis.grid(alpha=0.3)
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
        return _uri(figure, "svg")


def samples(judged: Judgement) -> str:
    """The images, clean and attacked, each with "true→seen"."""
    rows = {name: (images, figures.captions(judged.labels, seen)) for name, (images, seen) in judged.samples.items()}
    figure = Figure(figsize=(0.95 * len(judged.labels) + 0.9, 1.15 * len(rows)), layout="constrained")
    figures.draw_samples(figure, rows)
    return _uri(figure, "png")


def _lines(judged: Judgement, norm: str) -> Iterator[Curve]:
    found, styles = judged.worst[norm], iter(_STYLES)
    whole = len(found.right)
    for line in found.lines:
        if line.alone:
            few = f" ({line.images} images)" if line.images < whole else ""
            color, marker, dashes = next(styles)
            yield Curve(line.title + few, line.alone, {"color": color, "marker": marker, "linestyle": dashes})
    if norm == "linf" and judged.printed:
        yield Curve("FGSM, the paper's", judged.printed, {"color": "#D55E00", "marker": "P", "linestyle": ":"})
    white = {epsilon: percent(held) for epsilon, held in found.white.items()}
    yield Curve("minimum, gradients", white, {"color": "#555555", "linestyle": "-.", "linewidth": 2})
    yield Curve("minimum over all", found.minimum, {"color": "#000000", "marker": "o", "linewidth": 2.5})


def _uri(figure: Figure, kind: str) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else None)
    mime = {"svg": "image/svg+xml", "png": "image/png"}[kind]
    return f"data:{mime};base64,{base64.b64encode(stream.getvalue()).decode()}"
