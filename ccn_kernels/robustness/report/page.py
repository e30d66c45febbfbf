"""The report as one page of HTML that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2

from . import pictures, wording
from .collect import Judgement


def html(found: dict[str, Any], judged: Sequence[Judgement]) -> str:
    """The page.

    Args:
        found: what report.json holds.
        judged: the networks in the same order, for the pictures.
    """
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": wording.number, "radius": wording.radius}
    source = resources.files(__package__).joinpath("page.html.j2").read_text()
    drawn = [{"curves": {norm: pictures.curves(one, norm) for norm in one.worst}, "samples": pictures.samples(one)}
             for one in judged]  # fmt: skip
    return environment.from_string(source).render(
        found=found, networks=list(zip(found["networks"], drawn, strict=True)), wording=wording
    )
