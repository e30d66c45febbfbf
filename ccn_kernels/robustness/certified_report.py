"""Certified radii beside the smallest ones that attacks find: what is proved, what is refuted."""

from __future__ import annotations

import itertools
import math
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from ..files import read_json, write_json
from ..version import __version__
from . import progress
from .attacks import PGD, DeepFool, exact, predictions
from .certified import NORMS, certified_radius
from .data import Split
from .runs import Run

EPSILONS = tuple(0.02 * 1.12**step for step in range(34))  # 0.02 to 0.84
ATTACKS = {"linf": "PGD", "l2": "DeepFool"}
TITLES = {"linf": "L∞", "l2": "L2"}
BATCH = 5  # images that are kept at a time: a kill loses no more


def measure(run: Run, split: Split, count: int, methods: Sequence[str], path: Path) -> dict[str, Any]:
    """Radii of a split's first images, proved by each method, and attacked.

    ``path`` keeps them: what it holds of these weights and images is not done again.

    Raises:
        RuntimeError: an attack succeeds within a certified radius: the proof or the program is wrong.
        TypeError, ValueError: as :func:`certified_radius`.
    """
    images, labels, _ = next(split.batches(range(min(count, len(split))), min(count, len(split))))
    images = images.clamp(0, 1)
    identity = {"network": run.network.title, "weights": run.digest, "data": split.fingerprint, "images": len(images)}
    found = read_json(path)
    if not isinstance(found, dict) or any(found.get(name) != value for name, value in identity.items()):
        found = {**identity, **_attacked(run, images, labels), "certified": {}, "versions": _versions()}
    with progress.bar(total=len(methods) * len(NORMS) * len(images), desc=run.network.title, unit="image") as bar:
        for method, norm in itertools.product(methods, NORMS):
            radii = found["certified"].setdefault(method, {}).setdefault(norm, [])
            bar.set_postfix_str(f"{method}, {TITLES[norm]}")
            bar.update(len(radii))
            while len(radii) < len(images):
                part = slice(len(radii), len(radii) + BATCH)
                radii += certified_radius(run.model, images[part], labels[part], norm, method=method).tolist()
                write_json(path, found)
                bar.update(len(images[part]))
            _check(found, method, norm)
    return found


def table(networks: Sequence[dict[str, Any]], norm: str, methods: Sequence[str]) -> str:
    """A row a network: medians over the images it is right about, and how much of the attacked radius is proved."""
    rows = []
    for found in networks:
        proved = {method: _right(found, found["certified"][method][norm]) for method in methods}
        attacked = _right(found, found["attacked"][norm])
        best = [max(radii) for radii in zip(*proved.values(), strict=True)]
        ratios = [radius / limit for radius, limit in zip(best, attacked, strict=True)]
        medians = [_median(radii) for radii in (*proved.values(), attacked, ratios)]
        rows.append([found["network"], f"{sum(found['right'])} of {found['images']}", *medians])
    headers = [TITLES[norm], "right", *methods, ATTACKS[norm], "ratio"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _attacked(run: Run, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Which images the network is right about, and the smallest radii that fool it, None where none does."""
    with exact(run.model):
        right = predictions(run.model, images) == labels
        found = DeepFool()(run.model, images, labels)
        fooled = PGD(EPSILONS)(run.model, images, labels)["fooled"]  # [N, epsilons]
    distance = found["ratio"].double() * images.double().flatten(1).norm(dim=1)
    radii = {
        "linf": torch.where(fooled, torch.tensor(EPSILONS, dtype=torch.float64), torch.inf).amin(1),
        "l2": torch.where(found["fooled"], distance, torch.inf),
    }
    attacked = {norm: [radius if radius < math.inf else None for radius in radii[norm].tolist()] for norm in NORMS}
    return {"right": right.tolist(), "attacked": attacked}


def _check(found: dict[str, Any], method: str, norm: str) -> None:
    proved, attacked = (_right(found, radii) for radii in (found["certified"][method][norm], found["attacked"][norm]))
    images = (image for image, right in enumerate(found["right"]) if right)
    refuted = [image for image, radius, limit in zip(images, proved, attacked, strict=True) if limit <= radius]
    if refuted:
        raise RuntimeError(f"{ATTACKS[norm]} succeeds within the certified {norm} radius of images {refuted}")


def _right(found: dict[str, Any], radii: Sequence[float | None]) -> list[float]:
    pairs = zip(radii, found["right"], strict=True)
    return [math.inf if radius is None else radius for radius, right in pairs if right]


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1e}" if values else "none"


def _versions() -> dict[str, str]:
    return {"ccn_kernels": __version__, "torch": torch.__version__, "machine": platform.machine()}
