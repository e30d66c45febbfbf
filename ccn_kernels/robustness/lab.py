"""Measures the cells of the paper's tables: trains the networks that they need, attacks them, keeps it all on disk."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..files import write
from . import data, evaluation, substitute, tree, worst
from .attacks import Attack, Outcome, Transfer, by_name, sized_for
from .config import METHODS
from .data import Dataset
from .paper import TABLES, Cell, cells
from .runs import Run, folder_name
from .scales import Scale
from .training import train

logger = logging.getLogger("ccn_kernels")


@dataclass(frozen=True)
class Measured:
    """Our number for a cell, and what it rests on."""

    value: float
    images: int
    notes: dict[str, float]  # in percent: "zero gradients", "success" of the attack, "agreement" of a substitute
    held: dict[int, bool] = field(default_factory=dict, compare=False, repr=False)  # by image; of attacks with a size


class Lab:
    """Networks and outcomes at one scale, under one folder.

    Args:
        root: where MNIST and CIFAR-10 lie; unused at the smoke scale.
        images: the tree of image files for table 5.
        changes: to the schedules' settings, by the caller.
        loading: options of :func:`data.folder.load`.
    """

    def __init__(
        self,
        scale: Scale,
        folder: Path,
        *,
        root: Path | None = None,
        images: Path | None = None,
        device: torch.device | str = "cpu",
        changes: dict[str, Any] | None = None,
        loading: dict[str, Any] | None = None,
    ) -> None:
        self.scale, self.folder, self.device = scale, folder, device
        self.root, self.images = root, images
        self.changes, self.loading = changes or {}, loading or {}
        self.seed = self.changes.get("seed", 0)
        self.data, self.run = cache(self.data), cache(self.run)  # type: ignore[method-assign]

    def data(self, dataset: str) -> Dataset:
        """One of the paper's data sets, or what stands for it at this scale.

        Raises:
            ValueError: it is not given, or damaged.
            FileNotFoundError: a file of it is missing.
        """
        name = self.scale.data[dataset]
        if name != "folder":
            return data.load(name, self.root, self.device)
        if self.images is not None:
            return data.load(name, self.images, self.device, **self.loading)
        if self.scale.name != "smoke":
            raise ValueError("table 5 needs a tree of images: train/CLASS/*, val/CLASS/* (--images DIR)")
        digits = tree.of_digits(self.folder / "digits-tree")
        return data.load(name, digits, self.device, **{**self.loading, "image_size": tree.SIZE})

    def run(
        self,
        dataset: str,
        method: str,
        compact_layer: str | None = None,
        adversarial_epsilon: float = 0.0,
        embedding: int | None = None,
    ) -> Run:
        """A trained network; trains it where it is missing."""
        if (method, compact_layer) == ("SM", "fc3"):
            method, compact_layer = "L2SM", None  # the same network, bit for bit: not trained twice
        network = self.scale.network(dataset, METHODS[method], compact_layer, embedding)
        config = self.scale.config(dataset, {**self.changes, "adversarial_epsilon": adversarial_epsilon})
        folder = self._home(dataset) / folder_name(network, config)
        return train(network, self.data(dataset), config, folder, self.device)

    def measure(self, cell: Cell) -> Measured:
        """Our number."""
        run = self.run(cell.dataset, cell.method, cell.compact_layer, cell.adversarial_epsilon)
        if cell.attack == "none":
            return Measured(run.record["test_accuracy"], len(self.data(cell.dataset).test), {})
        if cell.attack == "minimum":
            return self._minimum(cell, run)
        outcome = self.outcome(cell, run)
        notes = {"zero gradients": evaluation.percent(outcome["zero_gradient"])}
        if "agrees" in outcome:
            notes["agreement"] = evaluation.percent(outcome["agrees"])
        if outcome["fooled"].dim() == 1:
            notes["success"] = evaluation.percent(outcome["fooled"][outcome["right"]])
        return Measured(_value(cell, outcome), len(outcome["right"]), notes, _held(cell, outcome))

    def _minimum(self, cell: Cell, run: Run) -> Measured:
        """Of attacks by gradients; those of the table itself are added where it is written (:mod:`.minimum`)."""
        data, count = self.data(cell.dataset), self.scale.images["minimum"]
        epsilons, steps = _epsilons(cell.dataset, "minimum"), self.scale.steps
        plan = worst.plan("linf", epsilons, data.classes, subset=0, steps=steps, device=self.device)
        found = worst.worst_case(run, plan, data.test, count, self._home(cell.dataset) / "attacks", self.seed)
        held = dict(zip(found.index.tolist(), found.held[cell.epsilon].tolist(), strict=True))
        return Measured(found.minimum[cell.epsilon], len(held), {}, held)

    def outcome(self, cell: Cell, run: Run) -> Outcome:
        """What became of the images that the cell's attack saw."""
        attack, split = sized_for(self.device, self._attack(cell, run)), self.data(cell.dataset).test
        home, count = self._home(cell.dataset) / "attacks", self.scale.images.get(cell.attack)
        held = substitute.HELD_OUT if cell.attack == "substitute" else 0
        return evaluation.evaluate(run, attack, split, count, home, skip=held, seed=self.seed)

    def _attack(self, cell: Cell, run: Run) -> Attack:
        epsilons = _epsilons(cell.dataset, cell.attack)
        if cell.attack == "substitute":
            return Transfer(self._substitute(cell, run), f"substitute of {run.digest}", epsilons)
        if cell.attack == "transfer":
            assert cell.source is not None
            source = self.run(cell.dataset, cell.source)
            return Transfer(source.model, source.digest, epsilons)
        return by_name(cell.attack, epsilons, self.scale.cw_steps)

    def _substitute(self, cell: Cell, run: Run) -> nn.Module:
        """The network that learned from the cell's; kept beside the outcomes."""
        scale, dataset = self.scale, self.data(cell.dataset)
        path = self._home(cell.dataset) / "attacks" / f"substitute-{run.digest[:12]}-seed{self.seed}.safetensors"
        model: nn.Module = substitute.lenet(dataset.shape, dataset.classes)
        if path.exists():
            try:
                model.load_state_dict(load_file(path))
                return model.to(self.device).eval()
            except (safetensors.SafetensorError, RuntimeError) as error:
                logger.warning("%s is damaged (%s): it is trained again", path, error)
        ((images, *_),) = dataset.test.batches(range(substitute.HELD_OUT), substitute.HELD_OUT)
        rounds, epochs = scale.substitute_rounds, scale.substitute_epochs
        model = substitute.train(run.model, images, dataset.classes, rounds=rounds, epochs=epochs, seed=self.seed)
        write(path, lambda temporary: save_file(model.state_dict(), temporary))
        return model

    def _home(self, dataset: str) -> Path:
        return self.folder / self.scale.data[dataset]


def _value(cell: Cell, outcome: Outcome) -> float:
    if cell.ratio is not None:
        return evaluation.accuracy_at_ratio(outcome, cell.ratio)
    if cell.metric in ("rho_adv", "robustness_pct"):
        return evaluation.robustness(outcome) * (100 if cell.metric == "robustness_pct" else 1)
    if cell.metric == "success_pct":
        return evaluation.percent(outcome["fooled"][outcome["right"]])
    if cell.metric == "mean_l2_distance":
        return outcome["distance"][outcome["fooled"]].double().mean().item()
    return evaluation.accuracy(outcome)[_epsilons(cell.dataset, cell.attack).index(cell.epsilon)].item()


def _held(cell: Cell, outcome: Outcome) -> dict[int, bool]:
    if outcome["fooled"].dim() == 1:
        return {}
    fooled = outcome["fooled"][:, _epsilons(cell.dataset, cell.attack).index(cell.epsilon)]
    return dict(zip(outcome["index"].tolist(), (outcome["right"] & ~fooled).tolist(), strict=True))


@cache
def _epsilons(dataset: str, attack: str) -> tuple[float, ...]:
    """Every radius that any table has for an attack: one evaluation serves them all."""
    found = (cell for table in TABLES for cell in cells(table) if (cell.dataset, cell.attack) == (dataset, attack))
    return tuple(sorted({cell.epsilon for cell in found}))
