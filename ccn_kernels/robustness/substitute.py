"""The black box of Papernot et al. (2017): a substitute learns from few images and an oracle's answers for them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import models
from . import progress
from .attacks import predictions

HELD_OUT = 150  # test images that the attacker owns: no attack is judged on them
STEP = 0.1  # lambda of the Jacobian augmentation
BATCH = 128


def lenet(shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """LeNet (LeCun et al., 1998), with ReLU and max pooling: images [N, *shape] in [0, 1] to logits [N, classes]."""
    features = 16 * ((shape[1] // 2 - 4) // 2) * ((shape[2] // 2 - 4) // 2)
    return nn.Sequential(
        models.Center(),
        *(nn.Conv2d(shape[0], 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(features, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)),
    )


def train(oracle: nn.Module, images: Tensor, classes: int, *, rounds: int = 6, epochs: int = 10, seed: int = 0
) -> nn.Module:  # fmt: skip
    """A substitute for ``oracle``, which is asked for classes alone; ``images`` [N, C, H, W] are all the attacker has.

    After every round but the last, each image gets a neighbour, a step of ``STEP`` along the sign of the substitute's
    gradient of the oracle's class.
    """
    torch.manual_seed(seed)
    model = lenet(tuple(images.shape[1:]), classes).to(images.device)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    labels = predictions(oracle, images)
    with progress.bar(total=rounds * epochs, desc="substitute", unit="epoch", leave=False) as bar:
        for turn in range(rounds):
            for _ in range(epochs):
                for chosen in torch.randperm(len(images)).to(images.device).split(BATCH):
                    optimizer.zero_grad()
                    F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
                    optimizer.step()
                bar.update()
            if turn + 1 < rounds:
                neighbours = _neighbours(model, images, labels)
                images = torch.cat([images, neighbours])
                labels = torch.cat([labels, predictions(oracle, neighbours)])
    return model.eval()


def _neighbours(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    images = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(images).gather(1, labels.unsqueeze(1)).sum(), images)
    return (images + STEP * gradient.sign()).clamp(0, 1).detach()
