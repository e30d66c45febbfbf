"""Data sets: images [N, C, H, W] in [0, 1] and labels [N], split into training and test images.

A split hands out batches of whichever indices it is asked for, on its device. MNIST, CIFAR-10 and the digits are
tensors that live there whole (:mod:`.splits`); a tree of image files is decoded as it is read (:mod:`.folder`).
"""

from __future__ import annotations

from pathlib import Path

import torch

from . import cifar, digits, folder, mnist
from .splits import Batches, Dataset, Split, fitting, mixed

DATASETS = ("digits", "digits32", "mnist", "cifar10", "folder")

__all__ = ["DATASETS", "Batches", "Dataset", "Split", "fitting", "load", "mixed"]


def load(name: str, path: str | Path | None = None, device: torch.device | str = "cpu", **options) -> Dataset:
    """Loads a data set by name.

    Args:
        name: "digits" (scikit-learn's, resized to 28x28 like MNIST) and "digits32" (in colour, 32x32 like CIFAR-10)
            need no files; "mnist", "cifar10"; "folder" is any tree ``train/CLASS/IMAGE``, ``val/CLASS/IMAGE``, that of
            ILSVRC-2012 for one.
        path: the folder where its files lie.
        device: where batches are wanted.
        options: for "folder" alone, see :func:`folder.load`.

    Raises:
        ValueError: the name is unknown, no path is given, or a file is damaged; the message names it.
        FileNotFoundError: a file is missing; the message names it and what is expected there.
    """
    if name not in DATASETS:
        raise ValueError(f"dataset must be one of {DATASETS}, got {name!r}")
    if name in ("digits", "digits32"):
        return digits.load(name, device)
    if path is None:
        raise ValueError(f"data folder must be given for {name} (--data DIR)")
    if not Path(path).is_dir():
        raise FileNotFoundError(f"{path} is no folder: the files of {name} are expected there")
    if name == "folder":
        return folder.load(Path(path), device, **options)
    return {"mnist": mnist, "cifar10": cifar}[name].load(Path(path), device)
