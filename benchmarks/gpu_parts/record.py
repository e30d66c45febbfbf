"""The result file: parts, each made of rows, every row written as soon as it is known."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from ccn_kernels.files import read_json, write

ROOT = Path(__file__).resolve().parents[2]


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


def fingerprint() -> str:
    """Of the sources that kernels are made of: unlike the commit it knows what is not committed yet."""
    sources = [path for path in (ROOT / "ccn_kernels").rglob("*") if path.suffix in (".py", ".json")]
    digest = hashlib.sha256()
    for path in sorted(sources):
        if path.name != "_build_info.json" and path.parent.name != "robustness":
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def git_commit() -> str | None:
    """The checkout's commit, "-dirty" if files differ from it; None where git does not know."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def without_paths(text: str) -> str:
    """Without this machine's."""
    for path, name in ((ROOT, "."), (Path(sys.prefix), "<python>"), (Path.home(), "~")):
        if path != Path(path.anchor):
            text = text.replace(str(path), name)
    return text


def today() -> str:
    return datetime.date.today().isoformat()


def failures(row: dict[str, Any]) -> list[str]:
    """What is wrong in a row: all of it, a result of ours, or one of our kernels that does not run."""
    if "failed" in row:
        return [row["failed"]]
    found = []
    for name, entry in row.get("providers", {}).items():
        if not name.startswith(("plain", "two-branch", "cudnn")):
            words = ("red gate", "failed", "refused") if name.startswith("ours") else ("red gate", "failed")
            found += [f"{name}: {word}, {entry[word]}" for word in words if word in entry]
    return found
