"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from . import wording


def text(found: dict[str, Any]) -> str:
    """All but the pictures of what report.json holds."""
    networks = found["networks"]
    parts = ["# Robustness, and what refutes it", *wording.NOTES]
    parts.append(_grid(wording.SUMMARY, [row for network in networks for row in wording.summary(network)]))
    for network in networks:
        parts += _network(network)
    parts += ["## Settings and versions", _grid(("what", "value"), wording.facts(found))]
    return "\n\n".join(parts) + "\n"


def _network(network: dict[str, Any]) -> list[str]:
    verdict = network["verdict"]
    parts = [f"## {network['title']}: {wording.verdict(verdict)}", wording.MEANING[verdict],
             f"Clean accuracy {wording.number(network['clean'])} % of {network['images']:,} images."]  # fmt: skip
    for norm in network["attacks"]:
        parts += [f"### Attacks, {wording.NORMS[norm]}", _grid(*wording.attacks(network, norm))]
    rows = [[row["name"], wording.verdict(row["verdict"]), row["why"], row["reference"]] for row in network["masking"]]
    parts += ["### Are its gradients masked?", _grid(("check", "verdict", "why", "after"), rows)]
    training = wording.training(network)
    return [*parts, "### Training", _grid(("setting", "value"), training)] if training else parts


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)
