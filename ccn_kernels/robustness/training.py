"""Training with the paper's schedule: resumable, reproducible, with progress."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .. import models
from ..files import write
from .data import Dataset


@dataclass(frozen=True)
class TrainConfig:
    """The paper's MNIST settings (section 5), except the number of epochs."""

    epochs: int = 50
    batch_size: int = 128
    learning_rate: float = 0.1
    milestones: tuple[float, ...] = (0.6, 0.8)  # x0.1 at epochs 30 and 40 of 50
    warmup_steps: int = 100  # not in the paper: without these two the plain network diverges at its learning rate
    clip: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0


class DivergedError(RuntimeError):
    """The loss is no longer finite."""


def train(variant: str, data: Dataset, config: TrainConfig, checkpoint: Path) -> tuple[nn.Module, float]:
    """The paper's MNIST network of a variant, trained; goes on from ``checkpoint`` where there is one.

    The order of the images depends on the seed and the epoch alone, so a resumed run equals an uninterrupted one.

    Returns:
        The model in evaluation mode, and the seconds that its training took.
    """
    torch.manual_seed(config.seed)
    model: nn.Module = models.paper_mnist_cnn(variant)
    optimizer = torch.optim.SGD(
        model.parameters(), config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )
    steps = config.epochs * -(-len(data.train_labels) // config.batch_size)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(config, step, steps))
    state = _Progress(model, optimizer, scheduler, {"variant": variant, "data": data.name, **asdict(config)})
    state.load(checkpoint)
    smoothing = models.label_smoothing(variant)
    for epoch in range(state.epoch, config.epochs):
        started = time.perf_counter()
        _run_epoch(state, data, config, epoch, smoothing)
        state.epoch, state.seconds = epoch + 1, state.seconds + time.perf_counter() - started
        state.save(checkpoint)
    return model.eval(), state.seconds


def _rate(config: TrainConfig, step: int, steps: int) -> float:
    """The learning rate of a step, as a share of the configured one."""
    decay = 0.1 ** sum(step >= round(steps * share) for share in config.milestones)
    return decay * min(1.0, (step + 1) / max(1, config.warmup_steps))


def _run_epoch(state: _Progress, data: Dataset, config: TrainConfig, epoch: int, smoothing: float) -> None:
    order = torch.randperm(
        len(data.train_labels), generator=torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    )
    state.model.train()
    batches = order.split(config.batch_size)
    title = f"{state.identity['variant']:>6} epoch {epoch + 1:>2}/{config.epochs}"
    correct = seen = 0
    with tqdm(batches, desc=title, unit="batch", leave=epoch + 1 == config.epochs) as bar:
        for batch in bar:
            loss, hits = _step(state, data.train_images[batch], data.train_labels[batch], smoothing, config.clip)
            correct, seen = correct + hits, seen + len(batch)
            bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{correct / seen:.3f}", refresh=False)


def _step(state: _Progress, images: Tensor, labels: Tensor, smoothing: float, clip: float) -> tuple[float, int]:
    logits = state.model(images)
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    if not loss.isfinite():
        raise DivergedError(f"{state.identity['variant']} diverged: its loss is {loss.item()}; lower the learning rate")
    state.optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(state.model.parameters(), clip)
    state.optimizer.step()
    state.scheduler.step()
    return loss.item(), int((logits.argmax(1) == labels).sum())


class _Progress:
    """A training run between two epochs, and its file."""

    def __init__(self, model: nn.Module, optimizer: Any, scheduler: Any, identity: dict[str, Any]) -> None:
        self.model, self.optimizer, self.scheduler, self.identity = model, optimizer, scheduler, identity
        self.epoch, self.seconds = 0, 0.0

    def save(self, path: Path) -> None:
        state = {
            "identity": self.identity,
            "epoch": self.epoch,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        write(path, lambda temporary: torch.save(state, temporary))

    def load(self, path: Path) -> None:
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        if state["identity"] != self.identity:
            tqdm.write(f"{path} is of a run with other settings: starting again")
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.epoch, self.seconds = state["epoch"], state["seconds"]
