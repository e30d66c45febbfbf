"""What a data set is made of: splits that hand out batches, and the augmentation of what lives on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

CROP_PADDING = 4


class Split(Protocol):
    """Images and labels by index."""

    labels: Tensor  # [N], int64, on the CPU

    def __len__(self) -> int: ...

    def batches(
        self, order: Sequence[int] | Tensor, batch_size: int, augment_seed: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (images [n, C, H, W] in [0, 1], labels [n]) of these indices, on the device.

        A seed augments: the same seed and order give the same images, whatever came before.
        """
        ...


class Dataset(NamedTuple):
    """One data set."""

    name: str
    classes: int
    shape: tuple[int, int, int]  # of one image: channels, height, width
    train: Split
    test: Split


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
        self._labels = labels.to(device)
        self.augmented = augmented

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, order: Sequence[int] | Tensor, batch_size: int, augment_seed: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in torch.as_tensor(order, dtype=torch.int64).split(batch_size):
            first, chosen = chosen[:1].sum().item(), chosen.to(self.images.device)
            images = self.images[chosen]
            if self.augmented and augment_seed is not None:  # the batch's own seed: an epoch may be gone on with
                images = crop_and_flip(images, augment_seed * 1_000_003 + int(first))
            yield images, self._labels[chosen]


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
