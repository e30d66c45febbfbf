"""The file beside the record: programs and diagnostics, part by part, every row written as soon as it is known."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import textwrap
from pathlib import Path
from typing import Any

from ccn_kernels.bench.record import fingerprint
from ccn_kernels.files import read_json, write

CARD = "clocks.sm,clocks.mem,power.draw,temperature.gpu"


class Record:
    """One GPU's results. A part's rows belong to one state of the package's sources: another state starts it anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: dict[str, Any] = read_json(path) or {"machine": {}, "parts": {}}

    def save(self) -> None:
        """Rows take one line each: the file is read by eye and by ``git diff``."""
        write(self.path, lambda temporary: temporary.write_text(pretty(self.data, depth=4) + "\n"))

    def begin(self, name: str, commit: str | None) -> dict[str, Any]:
        """The part, without what it holds of other sources."""
        sources = fingerprint()
        part = self.data["parts"].get(name)
        if part is None or part["sources"] != sources:
            part = {"sources": sources, "commit": commit, "date": today(), "seconds": 0, "missing": None, "rows": {}}
            self.data["parts"][name] = part
        part.pop("failed", None)
        return part

    def part(self, name: str) -> dict[str, Any]:
        return self.data["parts"][name]

    def forget(self, name: str, pattern: str) -> None:
        """Rows whose names match, so that they are done again."""
        part = self.part(name)
        part["rows"] = {key: row for key, row in part["rows"].items() if not re.search(pattern, key)}
        part["missing"] = None
        part.pop("lost", None)

    def rows(self, name: str) -> dict[str, dict[str, Any]]:
        return self.data["parts"].get(name, {}).get("rows", {})


def pretty(value: Any, depth: int) -> str:
    """JSON whose first levels have a line an entry."""
    if depth == 0 or not isinstance(value, dict) or not value:
        return json.dumps(value)
    entries = ",\n".join(f"{json.dumps(key)}: {pretty(inner, depth - 1)}" for key, inner in value.items())
    return "{\n" + textwrap.indent(entries, "  ") + "\n}"


def card() -> dict[str, str]:
    """A GPU's clocks, power and temperature, as found."""
    command = ["nvidia-smi", f"--query-gpu={CARD}", "--format=csv,noheader", "--id=0"]
    try:
        values = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(CARD.split(","), values.strip().split(", "), strict=False))


def today() -> str:
    return datetime.date.today().isoformat()


def failures(row: dict[str, Any]) -> list[str]:
    """What is wrong in a row: all of it, a result of ours, or one of our kernels that does not run."""
    if "failed" in row:
        return [row["failed"]]
    found = []
    for name, entry in row.get("providers", {}).items():
        if not name.startswith(("conv", "cudnn")):
            words = ("red gate", "failed", "refused") if name.startswith("ours") else ("red gate", "failed")
            found += [f"{name}: {word}, {entry[word]}" for word in words if word in entry]
    return found
