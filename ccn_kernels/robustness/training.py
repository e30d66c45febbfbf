"""Training with the paper's schedules: resumable at any step, reproducible, on one device or by torchrun on several."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler
from tqdm import tqdm

from .. import models
from ..env_report import report
from ..files import write
from ..scales import COMPACT
from . import runs
from .config import TrainConfig
from .data import Dataset, Split
from .runs import Network, Run

PROGRESS = "progress.pt"  # beside the weights that it will become
SAVE_SECONDS = 60.0


class DivergedError(RuntimeError):
    """The loss is no longer finite."""


def train(
    network: Network, data: Dataset, config: TrainConfig, folder: Path, device: torch.device | str = "cpu"
) -> Run:
    """A network, trained; goes on from what ``folder`` holds, and reads it where it is done.

    The order of the images and their augmentation depend on the seed and the epoch alone, and what is saved is the
    whole state: on a CPU, a resumed run ends bit-identical to an uninterrupted one. Under torchrun every process takes
    its share of each batch, and the first one writes.

    Raises:
        DivergedError: the loss is no longer finite.
        ValueError: ``folder`` holds another run, or a damaged one.
    """
    identity = {"network": asdict(network), "config": asdict(config), "data": data.name}
    if (folder / runs.RECORD).exists():
        return _finished(folder, network, identity, device)
    with _processes(torch.device(device)) as (rank, count):
        training = _Training(network, data, config, device, rank, count)
        progress = folder / PROGRESS
        training.load(progress, identity)
        training.run(lambda: training.save(progress, identity) if rank == 0 else None)
        record = {**identity, "history": training.history, "seconds": training.seconds}
        record["test_accuracy"] = accuracy(training.model, data.test)
        record["alpha"] = {name: layer.alpha.item() for name, layer in _compact(training.model)}
        record["environment"] = report()
        if rank > 0:
            return Run(network, training.model.eval(), record)
        run = runs.save(folder, network, training.model, data, record)
        progress.unlink(missing_ok=True)
        return run


def accuracy(model: nn.Module, split: Split, batch_size: int = 500) -> float:
    """Share of a split's images, in percent, that the model gets right in evaluation mode."""
    was_training = model.training
    model.eval()
    hits = seen = 0
    with torch.no_grad():
        for images, labels in split.batches(range(len(split)), batch_size):
            hits, seen = hits + int((model(images).argmax(1) == labels).sum()), seen + len(labels)
    model.train(was_training)
    return 100 * hits / seen


def fgsm_images(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """The training images of table 4: one signed gradient step of length epsilon, inside [0, 1]. [N, C, H, W]"""
    images = images.detach().requires_grad_()
    with torch.autocast(images.device.type, enabled=False):
        loss = F.cross_entropy(model(images), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images)
    return (images + epsilon * gradient.sign()).clamp(0, 1).detach()


def _compact(model: nn.Module) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, COMPACT)]


def _finished(folder: Path, network: Network, identity: dict[str, Any], device: torch.device | str) -> Run:
    run = runs.load(folder, device, network)
    if {key: run.record.get(key) for key in identity} != json.loads(json.dumps(identity)):
        raise ValueError(f"{folder} holds a network that was trained with other settings: choose another folder")
    return run


@contextlib.contextmanager
def _processes(device: torch.device) -> Iterator[tuple[int, int]]:
    """This process's rank and how many there are: torchrun's, or 0 of 1."""
    if "RANK" not in os.environ:
        yield 0, 1
        return
    started = not distributed.is_initialized()
    if started:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield distributed.get_rank(), distributed.get_world_size()
    finally:
        if started:
            distributed.destroy_process_group()


class _Training:
    """A training run between two steps."""

    def __init__(
        self, network: Network, data: Dataset, config: TrainConfig, device: torch.device | str, rank: int, count: int
    ) -> None:
        torch.manual_seed(config.seed)
        self.network, self.data, self.config = network, data, config
        self.device, self.rank, self.count = torch.device(device), rank, count
        self.model = network.build(data.shape, data.classes).to(self.device)
        if config.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.kept = self._kept_images()
        self.sampler = DistributedSampler(self.kept, count, rank, seed=config.seed * 1_000_003)  # type: ignore[var-annotated,arg-type]
        self.local_batch = max(1, config.batch_size // count)
        self.epoch_steps = -(-len(self.sampler) // self.local_batch)
        self.steps = config.epochs * self.epoch_steps
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: rate(config, step, self.steps))
        self.smoothing = models.label_smoothing(network.variant, data.classes)
        self.step, self.seconds, self.history = 0, 0.0, []  # type: ignore[var-annotated]
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.device)  # loss, hits and images of this epoch
        self.forward = self._compiled()

    def _kept_images(self) -> Tensor:
        """Indices of the images that are trained on: all but those of the validation."""
        held = self.config.validation
        if not 0 <= held < len(self.data.train):
            raise ValueError(f"validation must leave images to train on, got {held} of {len(self.data.train)}")
        order = torch.randperm(len(self.data.train), generator=torch.Generator().manual_seed(0))
        self.held = order[:held]
        return order[held:].sort().values

    def _compiled(self) -> nn.Module:
        forward: nn.Module = self.model
        if self.count > 1:
            forward = DistributedDataParallel(forward)
        return forward if self.config.compile is None else torch.compile(forward, mode=self.config.compile)  # type: ignore[return-value]

    def run(self, save: Any) -> None:
        """To the end; ``save()`` is called now and then, and after every epoch."""
        title = f"{self.network.title}{' adv.' if self.config.adversarial_epsilon else ''}"
        with tqdm(total=self.steps, initial=self.step, desc=title, unit="step", disable=self.rank > 0) as bar:
            while self.step < self.steps:
                saved = time.perf_counter()
                for images, labels in self._batches():
                    started = time.perf_counter()
                    self._update(images, labels)
                    self.step += 1
                    self.seconds += time.perf_counter() - started
                    self._tell(bar)
                    if time.perf_counter() - saved > SAVE_SECONDS and self.step % self.epoch_steps:
                        save()
                        saved = time.perf_counter()
                self._end_epoch()
                save()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What is left of this epoch."""
        epoch, done = divmod(self.step, self.epoch_steps)
        self.model.train()
        self.sampler.set_epoch(epoch)
        order = self.kept[torch.tensor(list(self.sampler))][done * self.local_batch :]
        seed = self.config.seed * 1_000_003 + epoch
        return self.data.train.batches(order, self.local_batch, augment_seed=seed)

    def _update(self, images: Tensor, labels: Tensor) -> None:
        if self.config.adversarial_epsilon:
            attacked = fgsm_images(self.model, images, labels, self.config.adversarial_epsilon)
            images, labels = torch.cat([images, attacked]), labels.repeat(2)
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            logits = self.forward(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.scheduler.step()
        hits = (logits.argmax(1) == labels).sum()
        self.sums += torch.stack([loss.detach() * len(labels), hits, hits.new_tensor(len(labels))]).double()

    def _tell(self, bar: Any) -> None:
        """Progress; asking a GPU for the loss waits for it, so it is not asked at every step."""
        bar.update()
        if self.device.type == "cpu" or self.step % 50 == 0 or self.step % self.epoch_steps == 0:
            loss, hits, images = self.sums.tolist()
            if not loss < float("inf"):
                raise DivergedError(
                    f"{self.network.title} diverged: no finite loss at step {self.step}; lower the learning rate"
                )
            epoch = -(-self.step // self.epoch_steps)
            bar.set_postfix(epoch=f"{epoch}/{self.config.epochs}", loss=f"{loss / images:.3f}",
                            accuracy=f"{100 * hits / images:.1f}", refresh=False)  # fmt: skip

    def _end_epoch(self) -> None:
        loss, hits, images = self.sums.tolist()
        self.history.append({"loss": loss / images, "accuracy": 100 * hits / images})
        if len(self.held):
            self.history[-1]["validation_accuracy"] = accuracy(self.model, _Subset(self.data.train, self.held))
        self.sums.zero_()

    def save(self, path: Path, identity: dict[str, Any]) -> None:
        """Everything that going on needs."""
        state = {
            "identity": identity,
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "sums": self.sums,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": torch.get_rng_state(),
        }
        write(path, lambda temporary: torch.save(state, temporary))

    def load(self, path: Path, identity: dict[str, Any]) -> None:
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            found = state["identity"]
        except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it to start again") from error
        if found != identity:
            raise ValueError(f"{path} is of a run with other settings: delete it, or choose another folder")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        self.sums.copy_(state["sums"])
        torch.set_rng_state(state["random"])


class _Subset:
    """Some of a split's images."""

    def __init__(self, split: Split, chosen: Tensor) -> None:
        self.split, self.chosen, self.labels = split, chosen, split.labels[chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def batches(self, order: Any, batch_size: int, augment_seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        return self.split.batches(self.chosen[torch.as_tensor(order, dtype=torch.int64)], batch_size, augment_seed)


def rate(config: TrainConfig, step: int, steps: int) -> float:
    """The learning rate of a step, as a share of the configured one."""
    decay = config.decay ** sum(step >= round(steps * share) for share in config.milestones)
    return decay * min(1.0, (step + 1) / max(1, config.warmup_steps))
