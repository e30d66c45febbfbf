"""Trees of image files, one folder a class: ILSVRC-2012, or any other. Decoded as they are read, by processes."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from .splits import Dataset

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
    return Dataset(path.name, len(classes), (3, image_size, image_size), train, test)


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
        found = [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted((root / name).glob("*"))
            if path.suffix.lower() in SUFFIXES
        ]
        if not found:
            raise FileNotFoundError(f"{root} has no images: files like {root / (classes or ['CLASS'])[0]}/*.JPEG")
        random.Random(0).shuffle(found)  # so that the first ones are of every class
        self.paths = [path for path, _ in found]
        self.labels = torch.tensor([label for _, label in found])
        self.corrupt: list[Path] = []
        self._device, self._workers, self._skip = torch.device(device), workers, on_corrupt == "skip"
        self._size = image_size

    def __len__(self) -> int:
        return len(self.paths)

    def batches(
        self, order: Sequence[int] | Tensor, batch_size: int, augment_seed: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        chosen = torch.as_tensor(order, dtype=torch.int64).tolist()
        jobs = _Jobs([self.paths[index] for index in chosen], self._size, augment_seed, chosen)
        loader = DataLoader(
            jobs,
            batch_size,
            num_workers=self._workers,
            collate_fn=list,
            pin_memory=self._device.type == "cuda",
            multiprocessing_context="spawn" if self._workers else None,
        )
        for decoded in loader:
            kept = [(image, self.labels[index]) for image, index in decoded if image is not None]
            self._report([self.paths[index] for image, index in decoded if image is None])
            if kept:
                images, labels = (torch.stack(parts) for parts in zip(*kept, strict=True))
                yield images.to(self._device).float() / 255, labels.to(self._device)

    def _report(self, corrupt: list[Path]) -> None:
        for path in corrupt:
            if not self._skip:
                raise ValueError(f"{path} cannot be decoded: replace it, or skip such images (--on-corrupt skip)")
            if path not in self.corrupt:
                logger.warning("%s cannot be decoded: skipped", path)
                self.corrupt.append(path)


class _Jobs(torch.utils.data.Dataset):
    """Decodes one image: uint8 [3, S, S] and its index, or None in its place."""

    def __init__(self, paths: list[Path], size: int, seed: int | None, indices: list[int]) -> None:
        self.paths, self.size, self.seed, self.indices = paths, size, seed, indices

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[Tensor | None, int]:
        index = self.indices[number]
        try:
            with Image.open(self.paths[number]) as image:
                decoded = image.convert("RGB")
        except (OSError, SyntaxError, Image.DecompressionBombError):  # Pillow's errors for files that are none
            return None, index
        if self.seed is None:
            cropped = _center_crop(decoded, self.size)
        else:
            cropped = _random_crop(decoded, self.size, np.random.default_rng((self.seed, index)))
        return torch.from_numpy(np.array(cropped)).permute(2, 0, 1).contiguous(), index


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
