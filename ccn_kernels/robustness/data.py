"""Data sets as whole tensors: images [N, C, H, W] in [0, 1], labels [N]."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

DATASETS = ("digits", "mnist")

# name of the canonical IDX file: md5 of its unzipped content
_MNIST = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
_IDX_UBYTE = 8


class Dataset(NamedTuple):
    """One data set, split; images are float32."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load(name: str, folder: str | Path | None = None) -> Dataset:
    """Loads a data set by name.

    Args:
        name: "digits" (scikit-learn's, resized to 28x28; needs no files) or "mnist".
        folder: for "mnist", where its four IDX files lie, gzipped or not.

    Raises:
        ValueError: the name is unknown, or a file is damaged.
        FileNotFoundError: a file is missing; the message names it.
    """
    if name == "digits":
        return _digits()
    if name == "mnist":
        if folder is None:
            raise ValueError("data folder must be given for mnist (--data DIR)")
        return _mnist(Path(folder))
    raise ValueError(f"dataset must be one of {DATASETS}, got {name!r}")


def _digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    small = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16  # [1797, 1, 8, 8]
    images = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(bunch.target).long()
    train, test = train_test_split(np.arange(len(labels)), test_size=0.25, random_state=0, stratify=bunch.target)
    return Dataset("digits", images[train], labels[train], images[test], labels[test])


def _mnist(folder: Path) -> Dataset:
    arrays = [torch.from_numpy(_read_idx(folder, name)) for name in _MNIST]
    images = [arrays[i].float().unsqueeze(1) / 255 for i in (0, 2)]  # [N, 1, 28, 28]
    labels = [arrays[i].long() for i in (1, 3)]
    return Dataset("mnist", images[0], labels[0], images[1], labels[1])


def _read_idx(folder: Path, name: str) -> np.ndarray:
    content = _read(folder, name)
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != _MNIST[name]:
        raise ValueError(f"{folder / name} is damaged: its md5 is {digest}, expected {_MNIST[name]}")
    kind, axes = content[2], content[3]
    assert kind == _IDX_UBYTE
    shape = np.frombuffer(content, ">i4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()


def _read(folder: Path, name: str) -> bytes:
    zipped, plain = folder / f"{name}.gz", folder / name
    if zipped.exists():
        try:
            return gzip.decompress(zipped.read_bytes())
        except (OSError, EOFError) as error:
            raise ValueError(f"{zipped} is damaged: {error}") from error
    if plain.exists():
        return plain.read_bytes()
    raise FileNotFoundError(f"{zipped} (or {name}, unzipped) is missing: an IDX file of MNIST is expected there")
