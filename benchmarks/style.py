"""What all pictures share. Colours are Okabe and Ito's, which colour-blind readers tell apart."""

from __future__ import annotations

import matplotlib
from reading import Record

matplotlib.use("agg")
matplotlib.rcParams.update({"font.size": 13, "axes.titlesize": 14, "figure.titlesize": 15, "axes.axisbelow": True})

COLORS = {
    "conv": "#666666",
    "conv_nobias": "#56B4E9",
    "two_branch": "#E69F00",
    "two_branch_compiled": "#009E73",
    "two_branch_max_autotune": "#D55E00",
    "cudnn_epilogue": "#CC79A7",
    "ccn": "#0072B2",
}
STEPS = {"forward": "forward", "training": "training step"}


class NotMeasured(Exception):
    """The record lacks the rows of a picture; says which."""


def title(record: Record, text: str, timing: str = "") -> str:
    where = record.environment
    threads = f"{where['threads']} threads" if where.get("threads") and not record.gpu else None
    facts = (where["device"], threads, record.dtype, timing, where["date"])
    return f"{text}\n{', '.join(fact for fact in facts if fact)}"


def timing(record: Record) -> str:
    return "graph replay" if record.timing == "graph" else ""
