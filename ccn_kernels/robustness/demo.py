"""The main job on real digits: plain and compact networks trained, attacked, and their speed compared."""

from __future__ import annotations

import hashlib
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from .. import convert, models
from ..backends import select
from ..env_report import report
from ..files import read_json, write_json
from . import attacks, data, figures
from .training import TrainConfig, train

TITLES = {"digits": "scikit-learn's digits", "mnist": "MNIST"}
NETWORKS = {"SM": "sm", "CCN": "ccn", "CCN+LS": "ccn+ls"}
EPSILONS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
SHOWN = (0.1, 0.2, 0.3, 0.4)
PGD_EPSILONS = (0.1, 0.2, 0.3)
PGD_IMAGES = 1000  # at most; the first ones of the test set
PICTURE_EPSILON = 0.3
DEFAULTS = {"digits": TrainConfig(epochs=10, batch_size=64, learning_rate=0.02), "mnist": TrainConfig(epochs=3)}


def run(dataset: str, folder: str | None, out: Path, config: TrainConfig) -> Path:
    """Trains, attacks and times; prints the table. What is finished stays in ``out`` and is not done again.

    Returns:
        The picture's path.
    """
    digits = data.load(dataset, folder)
    print(f"{dataset}: {len(digits.train_labels)} training images, {len(digits.test_labels)} test images")
    networks: dict[str, nn.Module] = {}
    results: dict[str, dict[str, Any]] = {}
    for name, variant in NETWORKS.items():
        networks[name], seconds = train(variant, digits, config, out / f"{variant}.pt")
        results[name] = {"train_seconds": seconds, **_attack(name, networks[name], digits, config, out)}
    speed = _images_per_second(digits, config.batch_size)
    print(_table(results, speed))
    write_json(out / "result.json", {"dataset": dataset, "config": asdict(config), "networks": results,
                                     "images_per_second": speed, "environment": report()})  # fmt: skip
    picture = out / "demo.png"
    title = f"The paper's MNIST network on {TITLES[dataset]}, {config.epochs} epochs"
    figures.demo_figure(picture, title, results, _adversarial_digits(networks, digits), PICTURE_EPSILON)
    print(f"picture: {picture}\nresults: {out / 'result.json'}")
    return picture


def _attack(name: str, model: nn.Module, digits: data.Dataset, config: TrainConfig, out: Path) -> dict[str, Any]:
    """Clean accuracy, and accuracy under FGSM and PGD for each epsilon; read from ``out`` where it is there."""
    path = out / f"{NETWORKS[name]}.attacks.json"
    identity = {"data": digits.name, "seed": config.seed, "weights": _digest(model)}
    known = read_json(path)
    if known is None or known.pop("identity") != identity:
        images, labels = digits.test_images, digits.test_labels
        known = {"clean": attacks.accuracy(model, images, labels)}
        for attack, method, epsilons, count in (
            ("fgsm", attacks.fgsm(), EPSILONS, len(labels)),
            ("pgd", attacks.pgd(), PGD_EPSILONS, PGD_IMAGES),
        ):
            torch.manual_seed(config.seed)  # PGD starts at random
            title = f"{name:>6} {attack.upper()}"
            found = attacks.accuracy_under(method, model, images[:count], labels[:count], epsilons, title=title)
            known[attack], known["zero_gradients"] = found.accuracy, found.zero_gradients
        write_json(path, {"identity": identity, **known})
        known = read_json(path)
    return {**known, **{attack: {float(e): a for e, a in known[attack].items()} for attack in ("fgsm", "pgd")}}


def _digest(model: nn.Module) -> str:
    """A name for exactly these weights: attacks on others are no result for this network."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _images_per_second(digits: data.Dataset, batch_size: int, rounds: int = 15) -> dict[str, float]:
    """Training images a second of the plain network and of CCN by two-branch and fused layers, interleaved; medians."""
    images, labels = digits.train_images[:batch_size], digits.train_labels[:batch_size]
    torch.manual_seed(0)
    contenders: dict[str, nn.Module] = {"plain": models.paper_mnist_cnn("sm")}
    for name, backend in (("two-branch", "reference"), ("fused", None)):
        contenders[name] = models.paper_mnist_cnn("ccn")
        for layer in convert.compact_layers(contenders[name]):
            layer.backend = backend
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in tqdm(range(rounds + 2), desc=" speed", unit="round", leave=False):
        for name, model in contenders.items():
            started = time.perf_counter()
            F.cross_entropy(model(images), labels).backward()
            if turn >= 2:  # the first rounds warm up
                seconds[name].append(time.perf_counter() - started)
    return {name: len(images) / statistics.median(times) for name, times in seconds.items()}


def _table(results: dict[str, dict[str, Any]], speed: dict[str, float]) -> str:
    headers = ["network", "clean %", *(f"FGSM {e:g}" for e in SHOWN), *(f"PGD {e:g}" for e in PGD_EPSILONS),
               "train s", "plain\nimages/s", "two-branch\nimages/s", "fused\nimages/s"]  # fmt: skip
    rows = []
    for name, found in results.items():
        row = [name, found["clean"], *(found["fgsm"][e] for e in SHOWN), *(found["pgd"][e] for e in PGD_EPSILONS)]
        speeds = (speed["plain"], None, None) if name == "SM" else (None, speed["two-branch"], speed["fused"])
        rows.append([*(f"{value:.1f}" if isinstance(value, float) else value for value in row),
                     f"{found['train_seconds']:.0f}", *("" if s is None else f"{s:,.0f}" for s in speeds)])  # fmt: skip
    note = (
        f"FGSM: the whole test set. PGD: {attacks.PGD_STEPS} steps, the first {PGD_IMAGES} test images at most; it is "
        f"the stronger attack, so its\ncolumns bound the claim. images/s: training steps; fused = backend "
        f"{select(None, 'cpu', torch.float32, 2)!r}."
    )
    return "\n" + tabulate(rows, headers, tablefmt="github", disable_numparse=True, stralign="right") + "\n\n" + note


def _adversarial_digits(networks: dict[str, nn.Module], digits: data.Dataset) -> dict[str, Any]:
    """One test image of each class, attacked on each network, with "true → predicted" captions."""
    first = [int((digits.test_labels == label).nonzero()[0]) for label in range(10)]
    images, labels = digits.test_images[first], digits.test_labels[first]
    shown = {}
    for name, model in networks.items():
        attacked = attacks.adversarial_images(model, images, labels, PICTURE_EPSILON)
        predicted = attacks.predictions(model, attacked).tolist()
        shown[name] = (attacked, [f"{true}→{seen}" for true, seen in zip(labels.tolist(), predicted, strict=True)])
    return shown
