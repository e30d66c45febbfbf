"""The main job on real digits: plain and compact networks trained, attacked, and their speed compared."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import nn

from .. import convert, models
from ..backends import select
from ..env_report import report
from ..files import write_json
from . import attacks, data, evaluation, figures, progress
from .config import TrainConfig
from .runs import Network, Run
from .training import train

TITLES = {"digits": "scikit-learn's digits", "mnist": "MNIST"}
NETWORKS = {"SM": "sm", "CCN": "ccn", "CCN+LS": "ccn+ls"}
EPSILONS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
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
    print(f"{dataset}: {len(digits.train)} training images, {len(digits.test)} test images")
    networks: dict[str, nn.Module] = {}
    results: dict[str, dict[str, Any]] = {}
    for name, variant in NETWORKS.items():
        trained = train(Network("mnist_cnn", variant), digits, config, out / variant)
        networks[name] = trained.model
        results[name] = {"train_seconds": trained.record["seconds"], **_attack(trained, digits, out / variant)}
    speed = _images_per_second(digits, config.batch_size)
    print(_table(results, speed))
    write_json(out / "result.json", {"dataset": dataset, "config": asdict(config), "networks": results,
                                     "images_per_second": speed, "environment": report()})  # fmt: skip
    title = f"The paper's MNIST network on {TITLES[dataset]}, {config.epochs} epochs"
    picture = _draw(out / "demo.png", title, results, _adversarial_digits(networks, digits))
    print(f"picture: {picture}\nresults: {out / 'result.json'}")
    return picture


def _attack(trained: Run, digits: data.Dataset, folder: Path) -> dict[str, Any]:
    """Clean accuracy, and accuracy under FGSM and PGD for each epsilon."""
    found: dict[str, Any] = {"clean": trained.record["test_accuracy"]}
    for attack, count in ((attacks.FGSM(EPSILONS), None), (attacks.PGD(PGD_EPSILONS), PGD_IMAGES)):
        outcome = evaluation.evaluate(trained, attack, digits.test, count, folder)
        found[attack.name] = dict(zip(attack.epsilons, evaluation.accuracy(outcome).tolist(), strict=True))
        found["zero_gradients"] = outcome["zero_gradient"].double().mean().item()
    return found


def _images_per_second(digits: data.Dataset, batch_size: int, rounds: int = 15) -> dict[str, float]:
    """Training images a second of the plain network and of CCN by two-branch and fused layers, interleaved; medians."""
    images, labels, _ = next(digits.train.batches(range(batch_size), batch_size))
    torch.manual_seed(0)
    contenders: dict[str, nn.Module] = {"plain": models.paper_mnist_cnn("sm")}
    for name, backend in (("two-branch", "reference"), ("fused", None)):
        contenders[name] = models.paper_mnist_cnn("ccn")
        for layer in convert.compact_layers(contenders[name]):
            layer.backend = backend
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in progress.bar(range(rounds + 2), desc="speed", unit="round", leave=False):
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
        f"FGSM: the whole test set. PGD: {attacks.PGD(PGD_EPSILONS).steps} steps, the first {PGD_IMAGES} test images "
        f"at most; it is the stronger attack, so its\ncolumns bound the claim. images/s: training steps; fused = "
        f"backend {select(None, 'cpu', torch.float32, 2)!r}."
    )
    return "\n" + tabulate(rows, headers, tablefmt="github", disable_numparse=True, stralign="right") + "\n\n" + note


def _adversarial_digits(networks: dict[str, nn.Module], digits: data.Dataset) -> dict[str, Any]:
    """One test image of each class, attacked on each network, with "true→predicted" captions."""
    first = [int((digits.test.labels == label).nonzero()[0]) for label in range(10)]
    images, labels, _ = next(digits.test.batches(first, 10))
    shown = {}
    for name, model in networks.items():
        attacked = attacks.adversarial_images(model, images, labels, PICTURE_EPSILON)
        shown[name] = (attacked, figures.captions(labels, attacks.predictions(model, attacked)))
    return shown


def _draw(path: Path, title: str, curves: dict[str, dict[str, Any]], digits: dict[str, Any]) -> Path:
    """Accuracy against epsilon for each network, and beneath it each network's adversarial digits."""
    figure = figures.Figure(figsize=(9, 8.2), layout="constrained")
    upper, lower = list(figure.subfigures(2, 1, squeeze=False, height_ratios=[1.15, 1]).flat)
    axis = upper.subplots()
    for name, found in curves.items():
        for attack, style in (("fgsm", "-"), ("pgd", ":")):
            color, marker = figures.STYLES[name]
            points = sorted({0.0: found["clean"], **found[attack]}.items())
            axis.plot(*zip(*points, strict=True), style, color=color, marker=marker, label=f"{name}, {attack.upper()}")
    axis.set(xlabel="ε (L∞ radius, images in [0, 1])", ylabel="accuracy under attack, %", ylim=(-2, 102), title=title)
    axis.grid(alpha=0.3)
    axis.legend(ncols=3, fontsize=9)
    lower.suptitle(f"FGSM at ε = {PICTURE_EPSILON:g} against each network: true→predicted", fontsize=11)
    figures.draw_samples(lower, digits)
    return figures.save(figure, path)
