"""Certified radii beside the smallest ones that attacks find: what is proved, what is refuted."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from ..files import write_json
from ..version import __version__
from .attacks import PGD, DeepFool, exact, predictions
from .certified import NORMS, certified_radius
from .data import Split
from .runs import Run

EPSILONS = tuple(0.02 * 1.12**step for step in range(34))  # 0.02 to 0.84
ATTACKS = {"linf": "PGD", "l2": "DeepFool"}


def measure(run: Run, split: Split, count: int, method: str) -> dict[str, Any]:
    """Radii of a split's first images, and of those the network is right about their medians.

    Raises:
        RuntimeError: an attack succeeds within a certified radius: the proof or the program is wrong.
        TypeError, ValueError: as :func:`certified_radius`.
    """
    images, labels, _ = next(split.batches(range(min(count, len(split))), min(count, len(split))))
    images = images.clamp(0, 1)
    with exact(run.model):
        right = predictions(run.model, images) == labels
        attacked = _attacked(run, images, labels)
    norms = {}
    for norm in NORMS:
        certified = certified_radius(run.model, images, labels, norm, method=method)
        refuted = (right & attacked[norm].isfinite() & (attacked[norm] <= certified)).nonzero().flatten().tolist()
        if refuted:
            raise RuntimeError(f"{ATTACKS[norm]} succeeds within the certified {norm} radius of images {refuted}")
        norms[norm] = {"certified": certified.tolist(), "attacked": attacked[norm].tolist(),
                       "median_certified": _median(certified[right]),
                       "median_attacked": _median(attacked[norm][right])}  # fmt: skip
    versions = {"ccn_kernels": __version__, "torch": torch.__version__, "machine": platform.machine()}
    return {"method": method, "weights": run.digest, "data": split.fingerprint, "right": right.tolist(), "norms": norms,
            "versions": versions}  # fmt: skip


def summary(run: Run, found: dict[str, Any]) -> str:
    """A table for people."""
    rows = []
    for norm, values in found["norms"].items():
        proved, refuted = values["median_certified"], values["median_attacked"]
        rows.append([norm, f"{proved:.2e}", f"{refuted:.2e}", f"{proved / refuted:.1e}", ATTACKS[norm]])
    head = ["norm", "certified", "attacked", "ratio", "attack"]
    count, right = len(found["right"]), sum(found["right"])
    title = f"{run.network.title}, {found['method']} bounds, {right} of {count} images right; medians of these"
    return f"{title}\n{tabulate(rows, head, tablefmt='github', disable_numparse=True)}"


def write(path: Path, found: dict[str, Any]) -> None:
    """The radii as JSON: null where no attack succeeded."""
    for values in found["norms"].values():
        values["attacked"] = [radius if radius < float("inf") else None for radius in values["attacked"]]
    write_json(path, found)


def _attacked(run: Run, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The smallest radii that fool the network, infinite where none does. [N] each"""
    found = DeepFool()(run.model, images, labels)
    distance = found["ratio"].double() * images.double().flatten(1).norm(dim=1)
    fooled = PGD(EPSILONS)(run.model, images, labels)["fooled"]  # [N, epsilons]
    epsilons = torch.tensor(EPSILONS, dtype=torch.float64)
    return {
        "l2": torch.where(found["fooled"], distance, torch.inf),
        "linf": torch.where(fooled, epsilons, torch.inf).amin(1),
    }


def _median(radii: Tensor) -> float:
    return radii.median().item() if len(radii) else float("nan")
