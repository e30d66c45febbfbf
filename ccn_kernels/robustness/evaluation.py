"""A network under attack: batch by batch into a file, so that a killed evaluation goes on where it was."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..files import check_writable, write
from . import progress
from .attacks import Attack, Outcome, Transfer, exact, gradient_is_zero, predictions
from .data import Split, fitting, mixed

logger = logging.getLogger("ccn_kernels")


class Subject(Protocol):
    """What is attacked: a :class:`.runs.Run`, or a user's own network."""

    model: nn.Module

    @property
    def digest(self) -> str: ...

    @property
    def title(self) -> str: ...


def evaluate(
    run: Subject,
    attack: Attack,
    split: Split,
    count: int | None,
    folder: Path,
    *,
    skip: int = 0,
    seed: int = 0,
    among: Tensor | None = None,
) -> Outcome:
    """What became of images ``skip`` to ``skip + count`` of a split (None: to its end), kept in ``folder``.

    Args:
        among: of these, the indices of the images that are attacked; None for all.

    Returns:
        What the attack says of each image, ``right`` (before it), ``zero_gradient`` (of the network that it is crafted
        on), the ``seconds`` that it took and its ``index`` in the split, each [N, ...]. Images that cannot be decoded,
        and are skipped, are missing.

    Raises:
        ValueError: there is no such image, or none that can be decoded.
    """
    identity = {
        "attack": settings(attack),
        "weights": run.digest,
        "data": split.fingerprint,
        "skip": skip,
        "seed": seed,
    }
    if among is not None:
        identity["among"] = hashlib.sha256(among.numpy().tobytes()).hexdigest()
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    path = folder / f"{attack.name}-{name}.safetensors"
    end = len(split) if count is None else min(len(split), skip + count)
    order: Sequence[int] = range(skip, end) if among is None else among.tolist()
    outcome, done = _read(path, identity)
    if done < len(order):
        check_writable(folder)
    size = fitting(attack.batch_size, split.shape)
    batches = split.batches(order[done:], size) if done < len(order) else ()
    title = f"{run.title} {attack.name}"
    with progress.bar(
        total=len(order), initial=done, desc=title, unit="image", leave=False, disable=not batches
    ) as bar:
        for first, (images, labels, index) in zip(range(done, len(order), size), batches, strict=True):
            torch.manual_seed(mixed(seed, skip + first))  # of attacks that start at random
            if len(index):
                found = {**_attacked(run, attack, images.clamp(0, 1), labels), "index": index}
                outcome = _joined(outcome, found)
            done = min(first + size, len(order))
            _write(path, identity, outcome, done)
            bar.update(done - bar.n)
    if not outcome:
        raise ValueError(f"no image to attack: {end - skip} of {len(split)} were asked for, and none can be decoded")
    return {key: part[outcome["index"] < end] for key, part in outcome.items()}


def percent(flags: Tensor) -> float:
    """100 where all are true; NaN of none."""
    return 100 * flags.double().mean().item()


def accuracy(outcome: Outcome) -> Tensor:
    """Accuracy in percent [epsilons], or a scalar: images that were wrong before the attack stay errors."""
    right = outcome["right"]
    fooled = outcome["fooled"]
    held = right.view(-1, *[1] * (fooled.dim() - 1)) & ~fooled
    return 100 * held.double().mean(0)


def accuracy_at_ratio(outcome: Outcome, ratio: float) -> float:
    """Accuracy in percent where DeepFool may change an image by this residue ratio at most (equation 8)."""
    return 100 * (outcome["right"] & ~(outcome["fooled"] & (outcome["ratio"] <= ratio))).double().mean().item()


def robustness(outcome: Outcome) -> float:
    """The mean residue ratio of DeepFool, rho_adv of equation 9; images that were wrong count as 0."""
    return torch.where(outcome["right"], outcome["ratio"], 0.0).double().mean().item()


def images_per_second(outcome: Outcome) -> float:
    """Attacked images a second; NaN where an earlier version's file does not tell."""
    return 1 / outcome["seconds"].mean().item() if "seconds" in outcome else math.nan


def summary(run: Subject, attack: Attack, outcome: Outcome) -> str:
    """A few lines for people."""
    lines = [f"{run.title} under {attack.name}, {len(outcome['right']):,} images",
             f"clean                 {100 * outcome['right'].double().mean():6.2f} %"]  # fmt: skip
    if outcome["fooled"].dim() == 2:
        values = zip(attack.epsilons, accuracy(outcome).tolist(), strict=True)  # type: ignore[attr-defined]
        lines += [f"accuracy at ε = {epsilon:<6.4g}{value:6.2f} %" for epsilon, value in values]
    else:
        lines.append(f"fooled, of the right  {100 * outcome['fooled'][outcome['right']].double().mean():6.2f} %")
    if "ratio" in outcome:
        lines.append(f"ρ_adv                 {robustness(outcome):6.3f}")
    if "distance" in outcome:
        lines.append(f"mean L2 distance      {outcome['distance'][outcome['fooled']].double().mean():6.3f}")
    if "seconds" in outcome:
        lines.append(f"images/s              {images_per_second(outcome):6.1f}")
    return "\n".join([*lines, f"gradients all zero    {100 * outcome['zero_gradient'].double().mean():6.2f} %"])


def settings(attack: Attack) -> dict[str, Any]:
    """An attack's name and all that its outcome depends on."""
    values = {entry.name: getattr(attack, entry.name) for entry in fields(attack) if entry.compare}  # type: ignore[arg-type]
    return json.loads(json.dumps({"name": attack.name, **values}))


def _attacked(run: Subject, attack: Attack, images: Tensor, labels: Tensor) -> Outcome:
    source = attack.source if isinstance(attack, Transfer) else run.model
    with exact(run.model, source):
        started = time.perf_counter()
        found = {"right": predictions(run.model, images) == labels,
                 "zero_gradient": gradient_is_zero(source, images, labels),
                 **attack(run.model, images, labels)}  # fmt: skip
        found = {key: part.detach().cpu() for key, part in found.items()}
    seconds = (time.perf_counter() - started) / len(images)
    return {**found, "seconds": torch.full((len(images),), seconds, dtype=torch.float64)}


def _joined(outcome: Outcome, found: Outcome) -> Outcome:
    """One after the other; what the first lacks, as earlier versions' files do, is left out."""
    if not outcome:
        return found
    return {key: torch.cat([part, found[key]]) for key, part in outcome.items()}


def _read(path: Path, identity: dict[str, Any]) -> tuple[Outcome, int]:
    """What is there, and of how many images of the order."""
    if not path.exists():
        return {}, 0
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["ccn"])
            if header["identity"] == identity:
                return {key: file.get_tensor(key) for key in file.keys()}, header["done"]  # noqa: SIM118
    except (safetensors.SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        logger.warning("%s is damaged (%s): its work is done again", path, error)
    return {}, 0


def _write(path: Path, identity: dict[str, Any], outcome: Outcome, done: int) -> None:
    header = {"ccn": json.dumps({"identity": identity, "done": done})}
    tensors = {key: part.contiguous() for key, part in outcome.items()}
    write(path, lambda temporary: save_file(tensors, temporary, header))
