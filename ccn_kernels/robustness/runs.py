"""What is trained, and the folder that a trained network lives in: weights.safetensors, and run.json beside it."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from .. import models
from ..arguments import check_delta
from ..files import read_json, write, write_json
from ..scales import compact_layers
from .config import METHODS, TrainConfig
from .data import Dataset

ARCHITECTURES = ("mnist_cnn", "vgg11")
WEIGHTS, RECORD = "weights.safetensors", "run.json"
FOREIGN = (
    RuntimeError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
)  # what reading another's leads to


@dataclass(frozen=True)
class Network:
    """A network of table 10 and its defence.

    Args:
        architecture: "mnist_cnn" or "vgg11".
        variant: one of ``models.VARIANTS``.
        compact_layer: the one place of a compact layer (table 13).
        embedding: features of fc2 (figure 2); None for table 10's.
        width: the share of table 10's channels and units.
        alpha: of every compact layer, and not learned; None for learned from 1 on.
        delta: of every compact layer; None for 0.01.
    """

    architecture: str
    variant: str = "sm"
    compact_layer: str | None = None
    embedding: int | None = None
    width: float = 1.0
    alpha: float | None = None
    delta: float | None = None

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """The network for images of a shape [C, H, W] and so many classes, initialised by the global generator."""
        model = self._of_table_10(shape, classes)
        layers = compact_layers(model)
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha must be positive and finite, got {self.alpha}")
        if not layers and self.scales:
            raise ValueError(f"alpha and delta are of compact layers: {self.variant} has none")
        for layer in layers:
            if self.delta is not None:
                check_delta(self.delta)
                layer.delta = self.delta
            if self.alpha is not None:
                nn.init.constant_(layer.alpha.requires_grad_(False), self.alpha)
        return model

    def _of_table_10(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        place, width = self.compact_layer, self.width
        if self.architecture == "mnist_cnn":
            if (*shape, classes) != (1, 28, 28, 10):
                raise ValueError(f"mnist_cnn takes images of 1x28x28 in 10 classes, got {shape} in {classes}")
            return models.paper_mnist_cnn(self.variant, compact_layer=place, embedding=self.embedding, width=width)
        if self.architecture == "vgg11":
            return models.vgg11(self.variant, classes, shape[0], compact_layer=place, image_size=shape[1], width=width)
        raise ValueError(f"architecture must be one of {ARCHITECTURES}, got {self.architecture!r}")

    @property
    def title(self) -> str:
        """The paper's name of it."""
        (method,) = (name for name, variant in METHODS.items() if variant == self.variant)
        places = [f"compact {self.compact_layer}"] if self.compact_layer else []
        return ", ".join([method, *places, *(f"{name} {value:g}" for name, value in self.scales.items())])

    @property
    def scales(self) -> dict[str, float]:
        """What compact layers have by choice."""
        given = {"alpha": self.alpha, "delta": self.delta}
        return {name: value for name, value in given.items() if value is not None}


def folder_name(network: Network, config: TrainConfig) -> str:
    """Where a network lies among others of its data set."""
    kind, radius = "pgd" if config.adversarial_steps else "fgsm", config.adversarial_epsilon
    smoothing = config.label_smoothing
    parts = [
        network.variant,
        network.compact_layer,
        *(f"{name}{value:g}" for name, value in network.scales.items()),
        None if smoothing is None else f"smoothing{smoothing:g}",
        f"{kind}{radius:.3g}" if radius else None,
        f"embedding{network.embedding}" if network.embedding else None,
        f"seed{config.seed}",
    ]
    return "-".join(filter(None, parts))


@dataclass
class Run:
    """A trained network, in evaluation mode, and its record."""

    network: Network
    model: nn.Module
    record: dict[str, Any]

    @property
    def digest(self) -> str:
        """A name for exactly these weights: attacks on others are no result for this network."""
        return self.record["weights_sha256"]

    @property
    def title(self) -> str:
        """The paper's name of the network."""
        return self.network.title


def save(folder: Path, network: Network, model: nn.Module, data: Dataset, record: dict[str, Any]) -> Run:
    """Writes the weights, then the record: a folder that has one is whole."""
    header = {"ccn": json.dumps({"network": asdict(network), "shape": data.shape, "classes": data.classes})}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write(folder / WEIGHTS, lambda temporary: save_file(state, temporary, header))
    record = json.loads(json.dumps({**record, "weights_sha256": _digest(folder / WEIGHTS)}))  # as it is read again
    write_json(folder / RECORD, record)
    return Run(network, model.to(memory_format=torch.contiguous_format).eval(), record)  # type: ignore[call-overload]


def load(path: Path, device: torch.device | str = "cpu", network: Network | None = None) -> Run:
    """A run's folder, or a weights file, read; nothing in it is executed.

    Args:
        network: what it must be; None for whatever it is.

    Raises:
        FileNotFoundError: there is no finished run.
        ValueError: the weights are damaged, are of another network, or are not what the record says.
    """
    weights = path / WEIGHTS if path.is_dir() else path
    if not weights.is_file():
        raise FileNotFoundError(
            f"{weights} is missing: the weights of a trained network (`ccn train`) are expected there"
        )
    try:
        with safetensors.safe_open(weights, "pt") as file:
            stored = json.loads((file.metadata() or {})["ccn"])
        found, state = Network(**stored["network"]), load_file(weights)
    except KeyError:
        raise ValueError(f"{weights} was not written by `ccn train`: its header names no network") from None
    except (safetensors.SafetensorError, json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{weights} is damaged: {error}") from error
    if network is not None and found != network:
        raise ValueError(f"{weights} is a {found}, expected a {network}")
    try:
        model = found.build(tuple(stored["shape"]), stored["classes"])
        if state.keys() != model.state_dict().keys():  # a compact layer would take a plain one's
            raise RuntimeError(f"names differ: {sorted(state.keys() ^ model.state_dict().keys())}")
        model.load_state_dict(state)
    except FOREIGN as error:
        raise ValueError(f"{weights} does not fit the network that its header names: {error}") from error
    record, digest = read_json(weights.parent / RECORD) or {}, _digest(weights)
    if not isinstance(record, dict):
        raise ValueError(f"{weights.parent / RECORD} is no record of `ccn train`: delete it")
    if record.setdefault("weights_sha256", digest) != digest:
        raise ValueError(f"{weights} is not what {weights.parent / RECORD} was written with: delete both")
    return Run(found, model.to(device).eval(), record)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
