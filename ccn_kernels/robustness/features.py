"""The paper's figures: adversarial samples, features in two dimensions, t-SNE, singular values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from . import figures
from .attacks import adversarial_images, predictions
from .lab import Lab

FIGURES = (1, 2, 5, 6)
METHODS = ("SM", "L2SM", "CCN")
LAYERS = ("conv1", "fc1", "fc2")
SAMPLE_EPSILON = 0.3
SINGULAR_VALUES = 50


def run(number: int, lab: Lab, out: Path) -> Path:
    """Draws one figure on the paper's MNIST network; returns its path.

    Raises:
        ValueError: there is no such figure.
    """
    draw = {1: _samples, 2: _embeddings, 5: _t_sne, 6: _spectra}.get(number)
    if draw is None:
        raise ValueError(f"figure must be one of {FIGURES}, got {number}")
    return draw(lab, out / f"figure{number}.png")


def activations(model: nn.Module, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """What the named layers give, after their ReLU where they have one: [N, features] each."""
    modules = dict(model.named_modules())
    found: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] = output.flatten(1).clone()

        return hook

    hooks = [
        modules[f"{name}_relu" if f"{name}_relu" in modules else name].register_forward_hook(keep(name))
        for name in names
    ]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for each in hooks:
            each.remove()
    return found


def singular_values(features: Tensor, count: int = SINGULAR_VALUES) -> Tensor:
    """The largest ``count`` of the matrix [N, features], in float64."""
    return torch.linalg.svdvals(features.double())[:count]


def _test_images(lab: Lab, count: int) -> tuple[Tensor, Tensor]:
    split = lab.data("mnist").test
    images, labels, _ = next(split.batches(range(min(count, len(split))), count))
    return images, labels


def _samples(lab: Lab, path: Path) -> Path:
    images, labels = _test_images(lab, 1000)
    first = [int((labels == label).nonzero()[0]) for label in range(10)]
    images, labels = images[first], labels[first]
    rows = {"clean": (images, [str(label) for label in labels.tolist()])}
    for method in ("SM", "CCN"):
        model = lab.run("mnist", method).model
        attacked = adversarial_images(model, images, labels, SAMPLE_EPSILON)
        rows[method] = (attacked, figures.captions(labels, predictions(model, attacked)))
    title = f"FGSM, ε = {SAMPLE_EPSILON:g}, on each network: true→predicted"
    return figures.samples(path, title, rows)


def _embeddings(lab: Lab, path: Path) -> Path:
    images, labels = _test_images(lab, 5 * lab.scale.features)
    panels = {}
    for method, name in (("SM", "softmax"), ("L2SM", "L2-softmax")):
        run = lab.run("mnist", method, embedding=2)
        points = activations(run.model, images, ["fc2"])["fc2"]
        panels["", f"{name}: {run.record['test_accuracy']:.1f} % right"] = points.cpu().numpy()
    return figures.scatter(path, "Two-dimensional features of test images", panels, labels.cpu().numpy())


def _t_sne(lab: Lab, path: Path) -> Path:
    from sklearn.manifold import TSNE

    images, labels = _test_images(lab, lab.scale.features)
    panels = {}
    for method in METHODS:
        found = activations(lab.run("mnist", method).model, images, LAYERS)
        for layer in LAYERS:
            points = TSNE(random_state=lab.seed, init="pca").fit_transform(found[layer].cpu().numpy())
            panels[method, layer] = np.asarray(points)
    return figures.scatter(path, "t-SNE of what layers give for test images", panels, labels.cpu().numpy())


def _spectra(lab: Lab, path: Path) -> Path:
    images, _ = _test_images(lab, lab.scale.features)
    found = {method: activations(lab.run("mnist", method).model, images, LAYERS) for method in METHODS}
    panels = {
        layer: {method: singular_values(found[method][layer]).cpu().numpy() for method in METHODS} for layer in LAYERS
    }
    title = f"The {SINGULAR_VALUES} largest singular values of the features of {len(images):,} test images"
    return figures.spectra(path, title, panels)
