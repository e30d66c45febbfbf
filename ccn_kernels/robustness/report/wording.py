"""What the page and the Markdown say alike: headings, sentences, numbers."""

from __future__ import annotations

import math
from typing import Any

NORMS = {"linf": "L∞", "l2": "L2"}
MARKS = {"holds": "✓", "suspicious": "!", "masked": "✗", "not measured": "–"}
SUMMARY = ("network", "ε", "paper", "FGSM", "PGD", "gradients", "all")
FGSM, PGD = 0, 1  # places of what every plan begins with
NOTES = (
    "The first table, L∞: the paper's accuracy under FGSM, ours, ours under PGD, the minimum over attacks by "
    "gradients, and the minimum over all.",
    "Accuracy in percent; an image that is wrong before an attack stays an error. The minimum over all counts an image "
    "only where no attack of that radius or a smaller one fools it: the network's robustness is at most that, and "
    "stronger attacks may yet lower it.",
    "Alone is the accuracy under one attack; left, what it and all above it leave. An attack without the first saw "
    "only what was left, at each radius: so many images in all. Black boxes see the first images only.",
)
MEANING = {
    "holds": "No check speaks against the network's gradients: the minimum is likely near the truth.",
    "suspicious": "A check is off by more than sound networks' are: trust the minimum alone, and no single attack.",
    "masked": "A check shows gradients that mislead: what one attack by itself leaves, FGSM above all, is no "
    "robustness. Trust the minimum alone.",
    "not measured": "No check could be made.",
}


def number(value: float | None) -> str:
    """Short, for people; nothing where there is no number."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 0.05 or value == 0 else f"{value:.2g}"


def radius(epsilon: float) -> str:
    """0.1, or 8/255 where it is so many of them."""
    steps = epsilon * 255
    return f"{steps:.0f}/255" if abs(steps - round(steps)) < 1e-6 and steps < 51 and epsilon else f"{epsilon:.4g}"


def summary(network: dict[str, Any]) -> list[list[str]]:
    """A row for each L-infinity radius, as ``SUMMARY`` heads them."""
    rows = []
    fgsm, pgd = (network["attacks"]["linf"][place]["alone"] for place in (FGSM, PGD))
    for epsilon, minimum in network["minimum"]["linf"].items():
        numbers = (network["paper"]["fgsm"].get(epsilon), fgsm[epsilon], pgd[epsilon],
                   network["white-box minimum"]["linf"][epsilon], minimum)  # fmt: skip
        rows.append([network["title"], radius(epsilon), *map(number, numbers)])
    return rows


def attacks(network: dict[str, Any], norm: str) -> tuple[list[str], list[list[str]]]:
    """A table's head and rows: for each attack its own accuracy and what is left after it, by radius."""
    epsilons = list(network["minimum"][norm])
    kinds = ("left", "alone")  # what matters first: a phone shows the first columns
    head = ["attack", *(f"{kind}, {radius(epsilon)}" for kind in kinds for epsilon in epsilons), "attacked", "images/s"]
    rows = []
    for line in network["attacks"][norm]:
        cells = [number(line[kind].get(epsilon)) for kind in kinds for epsilon in epsilons]
        rows.append([line["title"], *cells, number(line["images"]), number(line["images_per_second"])])
    return head, rows


def verdict(name: str) -> str:
    return f"{MARKS[name]} {name}"


def facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Settings and versions, one a line."""
    settings, machine = found["settings"], found["environment"]
    data = found["data"]
    pairs = [("date", found["date"]), ("data", f"{data['name']}, {data['test images']:,} test images"),
             ("seed", str(settings["seed"])), ("images", f"{settings['count']:,}"),
             ("images for black boxes", f"{settings['subset']}, HopSkipJump {settings['hops']}"),
             ("Square's queries", f"{settings['queries']:,}")]  # fmt: skip
    versions = {"ccn_kernels": machine["ccn_kernels"]["version"], **machine["packages"]}
    return [*pairs, *versions.items()]


def training(network: dict[str, Any]) -> list[tuple[str, str]]:
    """How a network of ours was trained; empty for a user's own."""
    found = network["training"]
    pairs = {**found.get("network", {}), **found.get("config", {})}
    return [(name.replace("_", " "), str(value)) for name, value in pairs.items() if value is not None]
