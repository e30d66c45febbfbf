"""Training with the paper's schedules: resumable at any step, reproducible, on one device or by torchrun on several."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from .. import models
from ..env_report import report
from ..files import check_writable, write
from ..scales import COMPACT
from . import adversarial, graphed, progress, runs
from .config import TrainConfig
from .data import Batches, Dataset, Split, fitting, mixed
from .precision import ieee
from .runs import Network, Run

PROGRESS = "progress.pt"  # beside the weights that it will become
SAVE_SECONDS = 60.0
SAVE_SHARE = 0.1  # of the time, that saving takes at most: a GPU's epochs may be shorter than a save


class DivergedError(RuntimeError):
    """The loss is no longer finite."""


def train(
    network: Network, data: Dataset, config: TrainConfig, folder: Path, device: torch.device | str = "cpu"
) -> Run:
    """A network, trained; goes on from what ``folder`` holds, and reads it where it is done.

    The order of the images and their augmentation depend on the seed and the epoch alone, and what is saved is the
    whole state: on a CPU, a resumed run ends bit-identical to an uninterrupted one. Under torchrun every process takes
    its share of each batch, and the first one writes: all of them must see ``folder``. One process on a GPU replays its
    steps from a CUDA graph (:mod:`.graphed`).

    Raises:
        DivergedError: the loss is no longer finite.
        ValueError: ``folder`` holds another run, or a damaged one, or one of another number of processes.
    """
    identity = {"network": asdict(network), "config": asdict(config), "data": data.identity}
    if (folder / runs.RECORD).exists():
        return _finished(folder, network, identity, device)
    with _processes(torch.device(device)) as (rank, count):
        training = _Training(network, data, config, device, rank, count)
        progress = folder / PROGRESS
        training.load(progress, identity)
        check_writable(folder)
        training.run(lambda: training.save(progress, identity) if rank == 0 else None)
        record = {**identity, **training.record(), "environment": report()}
        if rank == 0:
            run = runs.save(folder, network, training.model, data, record)
            progress.unlink(missing_ok=True)
        if count > 1:
            distributed.barrier()
        return run if rank == 0 else _finished(folder, network, identity, device)


def accuracy(model: nn.Module, split: Split, batch_size: int = 500, among: Tensor | None = None) -> float:
    """Share of a split's images, in percent, that the model gets right in evaluation mode.

    Args:
        batch_size: of images of 32x32; it is smaller where they are larger.
        among: indices of the images that count; None for all.

    Raises:
        ValueError: none of the images can be decoded.
    """
    order = torch.arange(len(split)) if among is None else among
    was_training = model.training
    model.eval()
    hits: Tensor | int = 0
    seen = 0
    with torch.no_grad(), ieee():
        for images, labels, _ in split.batches(order, fitting(batch_size, split.shape)):
            hits, seen = hits + (model(images).argmax(1) == labels).sum(), seen + len(labels)
    model.train(was_training)
    if not seen:
        raise ValueError("none of the images that are to be judged can be decoded")
    return 100 * int(hits) / seen


def _smoothing(network: Network, config: TrainConfig, classes: int) -> float:
    """As ``F.cross_entropy`` counts it: shared out among all classes, the true one too."""
    if config.label_smoothing is None:
        return models.label_smoothing(network.variant, classes)
    return config.label_smoothing * classes / (classes - 1)


def _compact(model: nn.Module) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, COMPACT)]


def _finished(folder: Path, network: Network, identity: dict[str, Any], device: torch.device | str) -> Run:
    run = runs.load(folder, device, network)
    if not _same({key: run.record.get(key) for key in identity}, identity):
        raise ValueError(f"{folder} holds a network of other settings or other data: choose another folder")
    return run


def _same(found: dict[str, Any], identity: dict[str, Any]) -> bool:
    """Whether a stored run is this one; a setting that its version had not yet stands for that setting's default."""
    try:
        settings = {"network": asdict(Network(**found["network"])), "config": asdict(TrainConfig(**found["config"]))}
    except (TypeError, KeyError, ValueError):
        return False
    return json.dumps({**found, **settings}, sort_keys=True) == json.dumps(identity, sort_keys=True)


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


class _Saves:
    """Calls ``save`` after every epoch that was long beside it, and within those that are long."""

    def __init__(self, save: Callable[[], None]) -> None:
        self._save, self._last, self._cost = save, time.perf_counter(), 0.0

    def in_epoch(self) -> None:
        self._unless_within(SAVE_SECONDS)

    def after_epoch(self) -> None:
        self._unless_within(self._cost / SAVE_SHARE)

    def _unless_within(self, seconds: float) -> None:
        started = time.perf_counter()
        if started - self._last >= seconds:
            self._save()
            self._last = time.perf_counter()
            self._cost = self._last - started


class _Training:
    """A training run between two steps."""

    def __init__(
        self, network: Network, data: Dataset, config: TrainConfig, device: torch.device | str, rank: int, count: int
    ) -> None:
        torch.manual_seed(config.seed)
        if config.batch_size % count:
            raise ValueError(f"batch_size must be a multiple of the {count} processes, got {config.batch_size}")
        self.network, self.data, self.config = network, data, config
        self.device, self.rank, self.count = torch.device(device), rank, count
        self.model = network.build(data.shape, data.classes).to(self.device)
        if config.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.kept = self._kept_images()
        self.sampler = DistributedSampler(self.kept, count, rank, seed=mixed(config.seed))  # type: ignore[var-annotated,arg-type]
        self.local_batch = config.batch_size // count
        self.epoch_steps = -(-len(self.sampler) // self.local_batch)
        self.steps = config.epochs * self.epoch_steps
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: rate(config, step, self.steps))
        self.smoothing = _smoothing(network, config, data.classes)
        self.step, self.seconds, self.history = 0, 0.0, []  # type: ignore[var-annotated]
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.device)  # loss, hits and images of this epoch
        self.epsilon = torch.zeros((), device=self.device)  # a captured step reads it anew
        self.forward = self._compiled()
        captured = graphed.pays(config, self.device, count)
        self.whole_batch = graphed.Graphed(self._gradients, self.model.parameters()) if captured else self._gradients

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

    def run(self, save: Callable[[], None]) -> None:
        """To the end; ``save()`` is called now and then."""
        title = f"{self.network.title}{' adv.' if self.config.adversarial_epsilon else ''}"
        with progress.bar(total=self.steps, initial=self.step, desc=title, unit="step", disable=self.rank > 0) as bar:
            started = time.perf_counter() - self.seconds
            saves = _Saves(save)
            while self.step < self.steps:
                for images, labels, _ in self._batches():
                    self._update(images, labels)
                    self.step += 1
                    self._tell(bar)
                    self.seconds = time.perf_counter() - started
                    if self.step % self.epoch_steps:
                        saves.in_epoch()
                self._end_epoch()
                saves.after_epoch()
        self.whole_batch = self._gradients  # a graph's memory would last until cyclic garbage is collected

    def _batches(self) -> Batches:
        """What is left of this epoch."""
        epoch, done = divmod(self.step, self.epoch_steps)
        self.model.train()
        self.sampler.set_epoch(epoch)
        order = self.kept[torch.tensor(list(self.sampler))][done * self.local_batch :]
        return self.data.train.batches(order, self.local_batch, augment_seed=mixed(self.config.seed, epoch))

    def _update(self, images: Tensor, labels: Tensor) -> None:
        if not len(labels):  # all of them corrupt
            if self.count > 1:
                raise ValueError("no image of a batch can be decoded: replace them, or train in one process")
            self.scheduler.step()
            return
        if self.config.adversarial_steps:  # its random starts: of the step alone, on any device
            torch.manual_seed(mixed(self.config.seed, self.step))
        self.epsilon.fill_(adversarial.radius(self.config, self.step, self.steps))
        gradients = self.whole_batch if len(labels) == self.local_batch else self._gradients
        gradients(images, labels)
        self.optimizer.step()
        self.scheduler.step()

    def _gradients(self, images: Tensor, labels: Tensor) -> None:
        """Of one batch, and what is told of it. On a GPU it may be captured: nothing here waits for the device."""
        images, labels = adversarial.batch(self.model, images, labels, self.config, self.epsilon)
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            logits = self.forward(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        if self.config.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        hits = (logits.argmax(1) == labels).sum()
        sums = torch.stack([loss.detach() * len(labels), hits, torch.full_like(hits, len(labels))]).double()
        if self.count > 1:
            distributed.all_reduce(sums)
        self.sums += sums

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
            bar.set_postfix(epoch=f"{epoch}/{self.config.epochs}", loss=f"{loss / max(1, images):.3f}",
                            accuracy=f"{100 * hits / max(1, images):.1f}", refresh=False)  # fmt: skip

    def _end_epoch(self) -> None:
        loss, hits, images = self.sums.tolist()
        if not images:
            raise ValueError("no training image can be decoded")
        self.history.append({"loss": loss / images, "accuracy": 100 * hits / images})
        if len(self.held):
            self.history[-1]["validation_accuracy"] = accuracy(self.model, self.data.train, among=self.held)
        self.sums.zero_()

    def record(self) -> dict[str, Any]:
        """What came out of it, for JSON."""
        return {
            "history": self.history,
            "seconds": self.seconds,  # of the training, with reading its images
            "test_accuracy": accuracy(self.model, self.data.test),
            "alpha": {name: layer.alpha.item() for name, layer in _compact(self.model)},
        }

    def save(self, path: Path, identity: dict[str, Any]) -> None:
        """Everything that going on needs."""
        state = {
            "identity": identity,
            "processes": self.count,
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
            found, count = state["identity"], state["processes"]
            same = _same(found, identity)
            if same and count == self.count:
                self._restore(state)
        except (*runs.FOREIGN, OSError, pickle.UnpicklingError) as error:  # torch.load seeks where nothing is
            raise ValueError(f"{path} is damaged ({error}): delete it to start again") from error
        if not same:
            raise ValueError(
                f"{path} is of a run with other settings or other data: delete it, or choose another folder"
            )
        if count != self.count:
            raise ValueError(f"{path} is of a run in {count} processes, not {self.count}: go on with as many")

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        self.sums.copy_(state["sums"])
        torch.set_rng_state(state["random"])


def rate(config: TrainConfig, step: int, steps: int) -> float:
    """The learning rate of a step, as a share of the configured one."""
    decay = config.decay ** sum(step >= round(steps * share) for share in config.milestones)
    return decay * min(1.0, (step + 1) / max(1, config.warmup_steps))
