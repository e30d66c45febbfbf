"""CIFAR-10, in the binary or the python layout of its authors."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .splits import Dataset, TensorSplit

FOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py")
TRAIN, TEST = tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",)
_PIXELS = 3 * 32 * 32
_RECORDS = 10_000  # a file

# The sum of the sha256 of every record (label, then pixels) modulo 2**256: it does not depend on their order.
CHECKSUMS = {
    "training": "d17523651dcffdf1be45e6671e5077f61b15cbf5376a64e556c870e6fb6066d3",
    "test": "ab21d127e2bbf4b95f1588dcadf3c8502b8fedb328dd5315bc7fa51b5ab965c0",
}


def load(path: Path, device: torch.device | str) -> Dataset:
    folder, read = _layout(path)
    train = _split(folder, "training", TRAIN, read, device)
    return Dataset("cifar10", 10, train, _split(folder, "test", TEST, read, device))


def _layout(path: Path) -> tuple[Path, Callable[[Path, str], np.ndarray]]:
    """Where the files are, and what reads one of them into records [10000, 1 + 3072]."""
    for folder in (path, *(home / name for home in (path, path / "cifar10") for name in FOLDERS)):
        for suffix, read in ((".bin", _read_binary), ("", _read_pickle)):
            if any((folder / f"{name}{suffix}").exists() for name in (*TRAIN, *TEST)):
                return folder, read
    raise FileNotFoundError(f"{path / FOLDERS[0]} is missing: data_batch_1.bin to test_batch.bin are expected there")


def _split(
    folder: Path, title: str, names: tuple[str, ...], read: Callable[[Path, str], np.ndarray], device: Any
) -> TensorSplit:
    records = np.concatenate([read(folder, name) for name in names])  # [N, 1 + 3072]
    found = sum(int.from_bytes(hashlib.sha256(record.tobytes()).digest(), "big") for record in records) % (1 << 256)
    if f"{found:064x}" != CHECKSUMS[title]:
        raise ValueError(
            f"the {title} images in {folder} are damaged: the checksum of {', '.join(names)} is {found:064x}, "
            f"expected {CHECKSUMS[title]}"
        )
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32)).float() / 255
    return TensorSplit(images, torch.from_numpy(records[:, 0]).long(), device, augmented=title == "training")


def _read_binary(folder: Path, name: str) -> np.ndarray:
    path = folder / f"{name}.bin"
    content, expected = _content(path), _RECORDS * (1 + _PIXELS)
    if len(content) != expected:
        raise ValueError(f"{path} is damaged: it has {len(content)} bytes, expected {expected}")
    return np.frombuffer(content, np.uint8).reshape(_RECORDS, 1 + _PIXELS)


def _read_pickle(folder: Path, name: str) -> np.ndarray:
    path = folder / name
    content = _content(path)
    try:
        batch = _Unpickler(content).load()
        labels = np.asarray(batch[b"labels"], np.uint8).reshape(_RECORDS, 1)
        return np.concatenate([labels, np.asarray(batch[b"data"], np.uint8).reshape(_RECORDS, _PIXELS)], axis=1)
    except Exception as error:  # there is none that unpickling a stranger's file may not raise
        raise ValueError(f"{path} is damaged, or no batch of CIFAR-10: {error}") from error


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: a file of CIFAR-10 is expected there") from None


class _Unpickler(pickle.Unpickler):
    """Admits arrays, lists, bytes, numbers and dicts: a file that asks for anything else runs nothing."""

    ADMITTED = frozenset(
        {
            ("_codecs", "encode"),
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        }
    )

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
