"""A user's own network as a subject of attacks, by RobustBench's conventions: images in [0, 1] in, logits out."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import factories
from . import contract, data

NESTED = ("state_dict", "model_state_dict", "model")  # where checkpoints keep their weights
GUESSED = ("mnist", "cifar10", "folder")


@dataclass
class Own:
    """A network, in evaluation mode; see :class:`.evaluation.Subject`."""

    model: nn.Module
    digest: str
    title: str


def load(target: str, weights: Path | None = None, device: torch.device | str = "cpu") -> Own:
    """The model that ``FILE.py:FACTORY`` makes, with the weights of a file.

    Args:
        weights: safetensors, or what ``torch.save`` wrote of a state dict; None leaves what the factory made.

    Raises:
        FileNotFoundError: there is no such weights file.
        ValueError: the factory makes no module, or the weights are damaged or another network's.
    """
    model = factories.made(target, "--model")
    if not isinstance(model, nn.Module):
        raise ValueError(f"--model: {target} must return an nn.Module, got {type(model).__name__}")
    if weights is not None:
        _fill(model, weights)
    return Own(model.to(device).eval(), _digest(model, target), target.rpartition(":")[2])


def told_apart(own: Own, images: Tensor) -> Own:
    """With what it does to some images in its digest: its code may lie in many files, and weights do not tell of it.

    Logits and gradients, to the bit: results of code that has changed are not taken for this code's.
    """
    found = hashlib.sha256(own.digest.encode())
    with torch.no_grad():
        logits = own.model(images)
    for value in (logits, contract.gradient(own.model, images)):
        if value is not None:
            found.update(_bytes(value))
    return replace(own, digest=found.hexdigest())


def dataset(path: Path, device: torch.device | str = "cpu", **options: Any) -> data.Dataset:
    """MNIST, CIFAR-10 or a tree of images, whichever lies in a folder.

    Args:
        options: of trees, see :func:`data.folder.load`.

    Raises:
        ValueError: it holds none of them.
    """
    for name in GUESSED:
        try:
            return data.load(name, path, device, **(options if name == "folder" else {}))
        except FileNotFoundError:
            continue
    raise ValueError(f"--data {path} holds neither MNIST's files nor CIFAR-10's nor a tree train/CLASS/*, val/CLASS/*")


def _fill(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"--weights: there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"--weights: {path} is damaged, or more than weights: {error}") from error
    for name in NESTED:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    try:
        model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(f"--weights: {path} does not fit the model: {error}") from error


def _digest(model: nn.Module, target: str) -> str:
    """Of the weights, and of the code where it is a file: results of another network are none of this one's."""
    digest = hashlib.sha256(target.encode())
    place = Path(target.rpartition(":")[0])
    if place.is_file():
        digest.update(place.read_bytes())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
