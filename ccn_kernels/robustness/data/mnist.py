"""MNIST's four IDX files, gzipped or not."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np
import torch

from .splits import Dataset, TensorSplit

# name of the canonical IDX file: md5 of its unzipped content
FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
_UBYTE = 8


def load(path: Path, device: torch.device | str) -> Dataset:
    homes = (path, path / "mnist", path / "MNIST" / "raw")
    path = next((home for home in homes if any(home.glob("*-ubyte*"))), path)
    arrays = [torch.from_numpy(_read_idx(path, name)) for name in FILES]
    train, test = (
        TensorSplit(arrays[i].float().unsqueeze(1) / 255, arrays[i + 1].long(), device) for i in (0, 2)
    )  # images [N, 1, 28, 28]
    return Dataset("mnist", 10, train, test)


def _read_idx(path: Path, name: str) -> np.ndarray:
    zipped, plain = path / f"{name}.gz", path / name
    content = _unzipped(zipped) if zipped.exists() else _read(plain)
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != FILES[name]:
        found = zipped if zipped.exists() else plain
        raise ValueError(f"{found} is damaged: the md5 of what it holds is {digest}, expected {FILES[name]}")
    kind, axes = content[2], content[3]
    assert kind == _UBYTE
    shape = np.frombuffer(content, ">i4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()


def _unzipped(path: Path) -> bytes:
    content = path.read_bytes()
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} (or {path.name}.gz) is missing: an IDX file of MNIST is expected there"
        ) from None
