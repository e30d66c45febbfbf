"""Which kernel, and which tile, computes a call: a table measured on that GPU if there is one, else a heuristic.

Nothing is measured here: a choice is a function of the call and of files. `ccn tune` writes such files.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

from .heuristics import HEURISTICS
from .limits import can_run
from .tiles import HYBRID, Device, Request, Tile

CONFIGS = Path(__file__).parent / "configs"
USER_TABLE = "CCN_TUNED"  # environment variable: a file of `ccn tune`, before the package's own


@functools.lru_cache(maxsize=4096)
def choose(request: Request, device: Device) -> Tile:
    """The tile for a pass: measured on this GPU, or a heuristic's."""
    measured = table(device.name).get(request.kind, {}).get(request.key)
    if measured is not None and not can_run(measured, request, device):
        return measured
    return HEURISTICS[request.kind](request, device)


@functools.cache
def table(device_name: str) -> dict[str, dict[str, Tile]]:
    """Tiles by kind and key: the package's table of this GPU, and a user's own over it."""
    merged: dict[str, dict[str, Tile]] = {kind: {} for kind in HEURISTICS}
    own = os.environ.get(USER_TABLE)
    for path in (CONFIGS / file_name(device_name), *([Path(own)] if own else [])):
        if path.parent == CONFIGS and not path.exists():
            continue
        for entry in read(path, device_name):
            merged[entry["kind"]][entry["key"]] = entry["tile"]
    return merged


def file_name(device_name: str) -> str:
    return device_name.lower().replace(" ", "_") + ".json"


def read(path: Path, device_name: str) -> list[dict[str, Any]]:
    """A table's entries, with their tiles; none of a table measured on another GPU.

    Raises:
        ValueError: the file is not such a table.
    """
    try:
        content = json.loads(path.read_text())
        if content["device"] != device_name:
            return []
        entries = [{**entry, "tile": _tile(entry["tile"])} for entry in content["entries"]]
        if not all(entry["kind"] in HEURISTICS and isinstance(entry["key"], str) for entry in entries):
            raise KeyError("kind, key")
    except (OSError, AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a table of tiles as `ccn tune` writes it: {error!r}") from error
    return entries


def _tile(content: dict[str, Any]) -> Tile:
    tile = Tile(**content)
    for field in dataclasses.fields(tile):
        value, expected = getattr(tile, field.name), type(getattr(HYBRID, field.name))
        if type(value) is not expected:
            raise TypeError(f"{field.name} must be of type {expected.__name__}, got {value!r}")
    return tile
