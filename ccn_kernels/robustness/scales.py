"""How much work a table does: on which data, how long it trains, how many images it attacks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from .config import ARCHITECTURE_OF, SCHEDULES, TrainConfig
from .runs import Network

FULL_DATA = {"mnist": "mnist", "cifar10": "cifar10", "ilsvrc_val": "folder"}


@dataclass(frozen=True)
class Scale:
    """One of the three.

    Args:
        data: for each of the paper's data sets, ours that stands for it.
        epochs: of all training; None for the paper's.
        images: that each attack sees at most; all where it has no entry.
        cw_steps, substitute_rounds, substitute_epochs: of those attacks; the paper's unless said.
        steps: of the attacks that the minimum is over.
        widths: shares of table 10's channels, by architecture; 1 where it has no entry.
        features: images that figures 5 and 6 look at.
    """

    name: str
    data: dict[str, str]
    epochs: int | None
    images: dict[str, int]
    cw_steps: int = 1000
    steps: int = 50
    substitute_rounds: int = 6
    substitute_epochs: int = 10
    widths: dict[str, float] = field(default_factory=dict)
    features: int = 2000

    def network(self, dataset: str, variant: str, compact_layer: str | None, embedding: int | None) -> Network:
        """The network of table 10 for one of the paper's data sets."""
        architecture = ARCHITECTURE_OF.get(self.data[dataset], "vgg11")
        return Network(architecture, variant, compact_layer, embedding, self.widths.get(architecture, 1.0))

    def config(self, dataset: str, changes: dict[str, Any]) -> TrainConfig:
        """The schedule for one of the paper's data sets; ``changes`` are the caller's."""
        schedule = SCHEDULES[self.data[dataset]]
        settings: dict[str, Any] = {"epochs": self.epochs or schedule.epochs, **changes}
        return replace(schedule, **settings)


SMOKE = Scale(
    "smoke",
    {"mnist": "digits", "cifar10": "digits32", "ilsvrc_val": "folder"},
    epochs=2,
    images={
        "fgsm": 100,
        "pgd": 6,
        "deepfool": 30,
        "deepfool_2018": 30,
        "cw": 10,
        "transfer": 200,
        "substitute": 200,
        "minimum": 6,
    },
    cw_steps=20,
    steps=5,
    substitute_rounds=2,
    substitute_epochs=5,
    widths={"mnist_cnn": 0.5, "vgg11": 0.125},
    features=300,
)
SMALL = Scale(
    "small",
    FULL_DATA,
    epochs=5,
    images={"pgd": 1000, "deepfool": 1000, "deepfool_2018": 1000, "cw": 200, "minimum": 200},
)
FULL = Scale("full", FULL_DATA, epochs=None, images={"pgd": 1000, "minimum": 1000})
SCALES = {scale.name: scale for scale in (SMOKE, SMALL, FULL)}
