"""A network under attack: batch by batch into a file, so that a killed evaluation goes on where it was."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..files import write
from .attacks import Attack, Outcome, Transfer, exact, gradient_is_zero, predictions
from .data import Split, fitting, mixed
from .runs import Run

logger = logging.getLogger("ccn_kernels")


def evaluate(
    run: Run, attack: Attack, split: Split, count: int | None, folder: Path, *, skip: int = 0, seed: int = 0
) -> Outcome:
    """What became of images ``skip`` to ``skip + count`` of a split (None: to its end), kept in ``folder``.

    Returns:
        What the attack says of each image, ``right`` (before it), ``zero_gradient`` (of the network that it is crafted
        on) and its ``index`` in the split, each [N, ...]. Images that cannot be decoded, and are skipped, are missing.

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
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    path = folder / f"{attack.name}-{name}.safetensors"
    end = len(split) if count is None else min(len(split), skip + count)
    outcome, done = _read(path, identity)
    size, begin = fitting(attack.batch_size, split.shape), skip + done
    batches = split.batches(range(begin, end), size) if begin < end else ()
    title = f"{run.network.title} {attack.name}"
    with tqdm(total=end - skip, initial=done, desc=title, unit="image", leave=False, disable=not batches) as bar:
        for first, (images, labels, index) in zip(range(begin, end, size), batches, strict=True):
            torch.manual_seed(mixed(seed, first))  # of attacks that start at random
            if len(index):
                found = {**_attacked(run, attack, images.clamp(0, 1), labels), "index": index}
                outcome = {key: torch.cat([outcome[key], part]) if outcome else part for key, part in found.items()}
            done = min(first + size, end) - skip
            _write(path, identity, outcome, done)
            bar.update(done - bar.n)
    if not outcome:
        raise ValueError(f"no image to attack: {end - skip} of {len(split)} were asked for, and none can be decoded")
    return {key: part[outcome["index"] < end] for key, part in outcome.items()}


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


def summary(run: Run, attack: Attack, outcome: Outcome) -> str:
    """A few lines for people."""
    lines = [f"{run.network.title} under {attack.name}, {len(outcome['right']):,} images",
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
    return "\n".join([*lines, f"gradients all zero    {100 * outcome['zero_gradient'].double().mean():6.2f} %"])


def settings(attack: Attack) -> dict[str, Any]:
    """An attack's name and all that its outcome depends on."""
    values = {entry.name: getattr(attack, entry.name) for entry in fields(attack) if entry.compare}  # type: ignore[arg-type]
    return json.loads(json.dumps({"name": attack.name, **values}))


def _attacked(run: Run, attack: Attack, images: Tensor, labels: Tensor) -> Outcome:
    source = attack.source if isinstance(attack, Transfer) else run.model
    with exact(run.model, source):
        found = {"right": predictions(run.model, images) == labels,
                 "zero_gradient": gradient_is_zero(source, images, labels),
                 **attack(run.model, images, labels)}  # fmt: skip
    return {key: part.detach().cpu() for key, part in found.items()}


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
