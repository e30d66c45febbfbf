"""A network's claim beside its refutation: one page of HTML, and the same as JSON and Markdown."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...env_report import report as environment
from ...files import check_writable, write, write_json
from .. import contract, masking, own
from ..data import Dataset
from ..evaluation import Subject
from . import collect, markdown, page
from .collect import Judgement, Settings

CHECKED = 200  # images on which a network's contract is looked at

__all__ = ["Judgement", "Settings", "run"]


def run(subjects: Sequence[Subject], data: Dataset, settings: Settings, out: Path) -> Path:
    """Attacks each network, with the others' images too, and writes report.html, .json and .md to ``out``.

    What was attacked before is read from ``out``; a killed report goes on where it was.

    Raises:
        ValueError: a network does not take images in [0, 1], or returns no logits of the data's classes.
    """
    images, labels = collect.first(data, CHECKED)
    for subject in subjects:
        try:
            contract.check(subject.model, images, labels, data.classes)
        except ValueError as error:
            raise ValueError(f"{subject.title}: {error}") from error
    check_writable(out)
    subjects = [own.told_apart(each, images[:8]) if isinstance(each, own.Own) else each for each in subjects]
    judged = []
    for subject in subjects:
        others = [other for other in subjects if other is not subject]
        judged.append(collect.judge(subject, others, data, settings, out / "attacks"))
    found = _without_nan(_found(judged, data, settings))
    write_json(out / "report.json", found)
    write(out / "report.md", lambda path: path.write_text(markdown.text(found)))
    write(out / "report.html", lambda path: path.write_text(page.html(found, judged)))
    return out / "report.html"


def _found(judged: Sequence[Judgement], data: Dataset, settings: Settings) -> dict[str, Any]:
    """All that the three files say, as JSON has it."""
    return {
        "data": {"name": data.name, "test images": len(data.test), "fingerprint": data.test.fingerprint},
        "settings": dataclasses.asdict(settings),
        "date": datetime.date.today().isoformat(),
        "networks": [one.as_json() for one in judged],
        "thresholds": {"suspicious": masking.SUSPICIOUS, "masked": masking.MASKED},
        "environment": environment(),
    }


def _without_nan(value: Any) -> Any:
    """None for what is of no images: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
