"""The paper's printed numbers (paper_tables.json), and what we measure beside them: a table is a list of cells."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

TABLES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13)  # 10 is the networks': ccn_kernels.models
DATASETS = ("mnist", "cifar10", "ilsvrc_val")
TITLES = {
    1: "Accuracy under FGSM",
    2: "Accuracy under DeepFool, by the largest residue ratio allowed",
    3: "Robustness ρ_adv under DeepFool",
    4: "Accuracy under FGSM of networks that were trained on FGSM's images",
    5: "ILSVRC-2012: top-1 accuracy under FGSM, and robustness under DeepFool",
    6: "Accuracy under FGSM crafted on a substitute",
    7: "MNIST: accuracy under FGSM of ε = 0.3 that was crafted on another network",
    8: "CIFAR-10: accuracy under FGSM of ε = 8/255 that was crafted on another network",
    9: "Normalisation layers: accuracy under FGSM",
    11: "MNIST: Carlini and Wagner's L2 attack",
    12: "CIFAR-10: Carlini and Wagner's L2 attack",
    13: "MNIST: a compact layer in one place, accuracy under FGSM of ε = 0.3",
}


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Args:
        method: the paper's name of the network that is tested.
        metric: as in paper_tables.json.
        attack: "none", "fgsm", "pgd", "deepfool", "deepfool_2018", "transfer", "substitute", "cw", or "minimum": over
            all that :mod:`.worst` has, and over the table's own.
        paper: the printed number; None where the paper has none.
        epsilon: radius in [0, 1]; ratio: DeepFool's largest residue ratio.
        source: the method that a transferred attack was crafted on.
        compact_layer, adversarial_epsilon: of the network.
    """

    table: int
    dataset: str
    row: str
    column: str
    method: str
    metric: str
    attack: str
    paper: float | None = None
    epsilon: float = 0.0
    ratio: float | None = None
    source: str | None = None
    compact_layer: str | None = None
    adversarial_epsilon: float = 0.0


_ATTACKS = {"fgsm_transfer": "transfer", "fgsm_substitute_lenet": "substitute", "cw_l2": "cw"}


@cache
def cells(table: int) -> tuple[Cell, ...]:
    """The table's cells in reading order: the paper's, then ours.

    Raises:
        ValueError: there is no such table.
    """
    if table not in TABLES:
        raise ValueError(f"table must be one of {TABLES}, got {table}")
    printed = [_printed(record) for record in _records() if record["table"] == table]
    return (*printed, *_ours(table, printed))


def datasets(table: int) -> set[str]:
    """Those that the table has numbers for."""
    return {cell.dataset for cell in cells(table)}


@cache
def _records() -> list[dict[str, Any]]:
    return json.loads(resources.files(__package__).joinpath("paper_tables.json").read_text())["records"]


def _printed(record: dict[str, Any]) -> Cell:
    setting, metric = record["setting"], record["metric"]
    place = setting.get("compact_layer")
    attack = "fgsm" if setting.get("white_box") else _ATTACKS.get(setting["attack"], setting["attack"])
    return Cell(
        table=record["table"],
        dataset=record["dataset"],
        row=record["method"] if place is None else place.replace("None", "none"),
        column=_column(setting, metric),
        method=record["method"] if place is None else "SM",
        metric=metric,
        attack=attack,
        paper=record["value"],
        epsilon=_radius(setting, "eps"),
        ratio=setting.get("max_residue_ratio"),
        source=setting.get("crafted_on"),
        compact_layer=None if place in (None, "None") else place,
        adversarial_epsilon=_radius(setting, "adv_train_eps"),
    )


def _radius(setting: dict[str, Any], key: str) -> float:
    unit = setting.get(f"{key}_unit", "1")
    return setting.get(key, 0) / (255 if unit == "1/255" else 1)


def _column(setting: dict[str, Any], metric: str) -> str:
    if "crafted_on" in setting:
        return f"on {setting['crafted_on']}"
    if "max_residue_ratio" in setting:
        return f"d = {setting['max_residue_ratio']:g}"
    if metric in ("rho_adv", "robustness_pct"):
        return "ρ_adv" if metric == "rho_adv" else "ρ_adv, %"
    if setting["attack"] == "cw_l2":
        return "mean L2 distance" if metric == "mean_l2_distance" else "success, %"
    if setting["attack"] == "none":
        return "clean"
    return f"ε = {setting['eps']:g}" + ("/255" if setting["eps_unit"] == "1/255" else "")


def _ours(table: int, printed: list[Cell]) -> list[Cell]:
    """Columns that the paper has not: stronger attacks beside FGSM, the minimum over all, DeepFool's form of 2018."""
    extra = []
    for cell in printed:
        if table in (2, 3):  # the form that explains the paper's plateaus
            column = f"{cell.column}, 2018 form"
            extra.append(replace(cell, attack="deepfool_2018", column=column, paper=None))
        if cell.attack == "fgsm" and (table == 1 or (table == 4 and cell.epsilon == cell.adversarial_epsilon)):
            extra.append(replace(cell, attack="pgd", column=cell.column.replace("ε", "PGD ε"), paper=None))
    return [*extra, *_minima(printed)]


def _minima(printed: list[Cell]) -> list[Cell]:
    """One for each network and radius."""
    found = {}
    for cell in printed:
        if cell.attack in ("fgsm", "transfer", "substitute"):
            column = "minimum" if cell.source else cell.column.replace("ε", "minimum ε")
            minimum = replace(cell, attack="minimum", column=column, source=None, paper=None)
            found[cell.row, cell.dataset, column] = minimum
    return list(found.values())
