"""Trees of image files, one folder a class: ILSVRC-2012, or any other. Decoded as they are read, by processes."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from .splits import Batches, Dataset

logger = logging.getLogger("ccn_kernels")

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")
FOLDERS = {"train": ("train",), "test": ("val", "test")}
ON_CORRUPT = ("raise", "skip")
RESIZE = 256 / 224  # test images are scaled to this much of the crop
SCALES, RATIOS = (0.08, 1.0), (3 / 4, 4 / 3)  # of training crops (Szegedy et al., 2015)


def load(
    path: Path,
    device: torch.device | str = "cpu",
    *,
    image_size: int = 224,
    workers: int = 0,
    on_corrupt: str = "raise",
) -> Dataset:
    """A tree ``train/CLASS/IMAGE`` and ``val/CLASS/IMAGE`` (or ``test``).

    Args:
        image_size: side of the square that images are cropped to.
        workers: processes that decode; 0 decodes in this one.
        on_corrupt: "raise" at an image that cannot be decoded, or "skip" it with a warning.
    """
    if on_corrupt not in ON_CORRUPT:
        raise ValueError(f"on_corrupt must be one of {ON_CORRUPT}, got {on_corrupt!r}")
    roots = {split: _root(path, names) for split, names in FOLDERS.items()}
    classes = sorted(entry.name for entry in roots["train"].iterdir() if entry.is_dir())
    unknown = sorted({entry.name for entry in roots["test"].iterdir() if entry.is_dir()} - set(classes))
    if unknown:
        raise ValueError(f"{roots['test']} has classes that {roots['train']} has not: {', '.join(unknown[:5])}")
    train, test = (
        FolderSplit(roots[split], classes, device, image_size, workers, on_corrupt) for split in ("train", "test")
    )
    return Dataset("folder", len(classes), train, test)


def _root(path: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (path / name).is_dir():
            return path / name
    raise FileNotFoundError(f"{path / names[0]} is missing: a folder of images for each class is expected there")


class FolderSplit:
    """Image files by index; ``corrupt`` lists those that were skipped."""

    def __init__(
        self, root: Path, classes: list[str], device: torch.device | str, image_size: int, workers: int, on_corrupt: str
    ) -> None:
        found = [(label, *file) for label, name in enumerate(classes) for file in _images(root, name)]
        if not found:
            raise FileNotFoundError(f"{root} has no images: files like {root / (classes or ['CLASS'])[0]}/*.JPEG")
        random.Random(0).shuffle(found)  # so that the first ones are of every class
        labels, names, sizes = zip(*found, strict=True)
        self.names = np.array(names)  # one array of bytes: a million strings would be copied into every worker
        self.labels = torch.tensor(labels)
        self.shape = (3, image_size, image_size)
        self.fingerprint = hashlib.sha256(repr((classes, names, sizes, image_size)).encode()).hexdigest()
        self.corrupt: list[Path] = []
        self._root, self._device, self._workers = root, torch.device(device), workers
        self._skip = on_corrupt == "skip"

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, order: Sequence[int] | Tensor, batch_size: int, augment_seed: int | None = None) -> Batches:
        chosen = torch.as_tensor(order, dtype=torch.int64)
        loader = DataLoader(
            _Jobs(self._root, self.names[chosen.numpy()], chosen, self.shape[1], augment_seed),
            batch_size,
            num_workers=self._workers,
            collate_fn=partial(_stacked, size=self.shape[1]),
            pin_memory=self._device.type == "cuda",
            multiprocessing_context="spawn" if self._workers else None,
        )
        for images, index, corrupt in loader:
            self._report(corrupt.tolist())
            images, labels = (part.to(self._device, non_blocking=True) for part in (images, self.labels[index]))
            yield images.float() / 255, labels, index

    def _report(self, corrupt: list[int]) -> None:
        for path in (_path(self._root, self.names[index]) for index in corrupt):
            if not self._skip:
                raise ValueError(f"{path} cannot be decoded: replace it, or skip such images (--on-corrupt skip)")
            if path not in self.corrupt:
                logger.warning("%s cannot be decoded: skipped", path)
                self.corrupt.append(path)


def _images(root: Path, name: str) -> list[tuple[bytes, int]]:
    """The image files of a class: path below ``root`` and size in bytes, in order."""
    if not (root / name).is_dir():
        return []
    with os.scandir(root / name) as entries:
        return sorted((os.fsencode(f"{name}/{entry.name}"), entry.stat().st_size) for entry in entries
                      if entry.name.lower().endswith(SUFFIXES))  # fmt: skip


def _path(root: Path, name: bytes) -> Path:
    return root / os.fsdecode(name)


class _Jobs(torch.utils.data.Dataset):
    """Decodes one image: uint8 [3, S, S] and its index, or None in its place."""

    def __init__(self, root: Path, names: np.ndarray, indices: Tensor, size: int, seed: int | None) -> None:
        self.root, self.names, self.indices, self.size, self.seed = root, names, indices, size, seed

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> tuple[Tensor | None, int]:
        index = int(self.indices[number])
        try:
            with Image.open(_path(self.root, self.names[number])) as image:
                decoded = image.convert("RGB")
        except (OSError, SyntaxError, Image.DecompressionBombError):  # Pillow's errors for files that are none
            return None, index
        if self.seed is None:
            cropped = _center_crop(decoded, self.size)
        else:
            cropped = _random_crop(decoded, self.size, np.random.default_rng((self.seed, index)))
        return torch.from_numpy(np.array(cropped)).permute(2, 0, 1).contiguous(), index


def _stacked(decoded: list[tuple[Tensor | None, int]], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images [n, 3, S, S] and their indices [n], and the indices of those that are corrupt."""
    images = [image for image, _ in decoded if image is not None]
    stacked = torch.stack(images) if images else torch.empty(0, 3, size, size, dtype=torch.uint8)
    index, corrupt = (torch.tensor([i for image, i in decoded if (image is None) == missing], dtype=torch.int64)
                      for missing in (False, True))  # fmt: skip
    return stacked, index, corrupt


def _center_crop(image: Image.Image, size: int) -> Image.Image:
    side = min(image.size) / RESIZE  # what of the image the crop sees
    left, top = ((extent - side) / 2 for extent in image.size)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))


def _random_crop(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    width, height = image.size
    area = width * height * rng.uniform(*SCALES)
    ratio = math.exp(rng.uniform(math.log(RATIOS[0]), math.log(RATIOS[1])))
    across, down = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
    left, top = rng.uniform(0, width - across), rng.uniform(0, height - down)
    cropped = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + across, top + down))
    return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cropped
