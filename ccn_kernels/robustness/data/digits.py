"""scikit-learn's 1,797 digits of 8x8 pixels, in the place of data that must be fetched."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from .splits import Dataset, TensorSplit

SHAPES = {"digits": (1, 28, 28), "digits32": (3, 32, 32)}  # those of MNIST and of CIFAR-10


def load(name: str, device: torch.device | str) -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    channels, *size = SHAPES[name]
    small = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16  # [1797, 1, 8, 8]
    images = F.interpolate(small, size=size, mode="bilinear", align_corners=False).repeat(1, channels, 1, 1)
    labels = torch.from_numpy(bunch.target).long()
    train, test = train_test_split(np.arange(len(labels)), test_size=0.25, random_state=0, stratify=bunch.target)
    splits = [TensorSplit(images[chosen], labels[chosen], device) for chosen in (train, test)]
    return Dataset(name, 10, *splits)
