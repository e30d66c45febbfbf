"""What a data set is made of: splits that hand out batches, and the augmentation of what lives on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

CROP_PADDING = 4
SMALL_IMAGE = 32 * 32  # pixels of the images that batch sizes are meant for

# images [n, C, H, W] in [0, 1] and labels [n], on the device, and the images' indices [n] in the split, on the CPU
Batches = Iterator[tuple[Tensor, Tensor, Tensor]]


class Split(Protocol):
    """Images and labels by index."""

    labels: Tensor  # [N], int64, on the CPU
    shape: tuple[int, int, int]  # of one image: channels, height, width

    @property
    def fingerprint(self) -> str:
        """The same for the same images and labels alone: results on others are no results for these."""
        ...

    def __len__(self) -> int: ...

    def batches(self, order: Sequence[int] | Tensor, batch_size: int, augment_seed: int | None = None) -> Batches:
        """Batches of these indices: one for every ``batch_size`` of them.

        What cannot be decoded, and is skipped, is missing: a batch may be empty. A seed augments: the same seed and
        order give the same images, whatever came before.
        """
        ...


class Dataset(NamedTuple):
    """One data set, by the name that it is loaded by."""

    name: str
    classes: int
    train: Split
    test: Split

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.train.shape

    @property
    def identity(self) -> dict[str, Any]:
        """What a result that was made with it depends on, for JSON."""
        return {"name": self.name, "classes": self.classes, "shape": list(self.shape),
                "train": self.train.fingerprint, "test": self.test.fingerprint}  # fmt: skip


class TensorSplit:
    """Images that live on the device as one tensor.

    Args:
        images: float32 [N, C, H, W].
        labels: int64 [N].
        augmented: random crops and flips for training, where a seed is given.
    """

    def __init__(self, images: Tensor, labels: Tensor, device: torch.device | str, augmented: bool = False) -> None:
        self.images = images.to(device)
        self.labels = labels
        channels, height, width = images.shape[1:]
        self.shape = (channels, height, width)
        self._labels = labels.to(device)
        self.augmented = augmented

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.images.cpu().contiguous().numpy().data)
        digest.update(self.labels.numpy().data)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, order: Sequence[int] | Tensor, batch_size: int, augment_seed: int | None = None) -> Batches:
        order = torch.as_tensor(order, dtype=torch.int64)
        there = order.to(self.images.device)  # at once: each copy to a GPU waits for all that it has to do
        for index, chosen in zip(order.split(batch_size), there.split(batch_size), strict=True):
            images = self.images[chosen]
            if self.augmented and augment_seed is not None:  # the batch's own seed: an epoch may be gone on with
                images = crop_and_flip(images, mixed(augment_seed, int(index[0])))
            yield images, self._labels[chosen], index


def fitting(batch_size: int, shape: Sequence[int]) -> int:
    """A batch size that is meant for images of 32x32, for images [C, H, W]: what is larger would not fit in memory."""
    return max(1, min(batch_size, batch_size * SMALL_IMAGE // (shape[1] * shape[2])))


def mixed(*numbers: int) -> int:
    """One seed, of 63 bits, from several numbers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big") >> 1


def crop_and_flip(images: Tensor, seed: int) -> Tensor:
    """Random crops of the zero-padded images [N, C, H, W], half of them mirrored; on the images' device."""
    generator = torch.Generator(images.device).manual_seed(seed)
    count, _, height, width = images.shape

    def draw(values: int) -> Tensor:  # [N, 1, 1, 1]
        return torch.randint(values, (count, 1, 1, 1), generator=generator, device=images.device)

    rows = torch.arange(height, device=images.device).view(1, 1, -1, 1) + draw(2 * CROP_PADDING + 1)
    columns = torch.arange(width, device=images.device).view(1, 1, 1, -1)
    columns = torch.where(draw(2) == 1, width - 1 - columns, columns) + draw(2 * CROP_PADDING + 1)
    padded = F.pad(images, (CROP_PADDING,) * 4)
    index = torch.arange(count, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(images.shape[1], device=images.device).view(1, -1, 1, 1)
    return padded[index, channel, rows, columns]
