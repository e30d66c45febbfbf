"""The result file: one JSON a device and version, an environment and rows, written whole after every measurement."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from ..env_report import processor
from ..files import read_json, write
from ..version import __version__

Row = dict[str, Any]
PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent
RESULTS = ROOT / "benchmarks" / "results"
JOB = ("suite", "workload", "batch", "pass", "dtype", "memory_format")  # what is measured in one interleaved run
WHO = ("provider", "variant", "backend", "timing")
ROW = (
    "workload", "suite", "provider", "variant", "backend", "timing", "pass", "dtype", "memory_format", "batch",
    "median_us", "p20_us", "p80_us", "peak_mb", "share_of_floor", "relative_error", "failure", "flop", "bytes",
    "floor_us", "images_per_s", "rounds",
)  # fmt: skip


class Record:
    """One device's results; its rows belong to one state of the sources that kernels are made of."""

    def __init__(self, path: Path, environment: dict[str, Any], rows: list[Row] | None = None) -> None:
        self.path, self.environment, self.rows = path, environment, rows or []

    @classmethod
    def load(cls, path: Path) -> Record:
        """Raises ValueError where the file is missing, or no record."""
        found = read_json(path)
        if not isinstance(found, dict) or not {"environment", "rows"} <= found.keys():
            raise ValueError(f"{path} is {'missing' if found is None else 'no record of `ccn bench`'}")
        return cls(path, found["environment"], found["rows"])

    @classmethod
    def resume(cls, path: Path, environment: dict[str, Any]) -> Record:
        """What the file holds for this state of the sources; nothing where it is missing.

        Rows of another state are not lost: they stay beside it, in a file named ``*.old.json``.

        Raises:
            ValueError: the file is no record, or another device's.
        """
        if not path.exists():
            return cls(path, environment)
        found = cls.load(path)
        there, here = found.environment.get("device"), environment["device"]
        if there != here:
            raise ValueError(f"{path} holds measurements of {there}, this is {here}: name another file by --out")
        if found.environment.get("sources") == environment["sources"]:
            return cls(path, {**found.environment, **environment}, found.rows)
        if found.rows:
            kept = path.with_suffix(".old.json")
            path.replace(kept)
            print(f"the sources have changed since {path} was measured: it is now {kept.name}", file=sys.stderr)
        return cls(path, environment)

    def save(self) -> None:
        write(self.path, lambda temporary: temporary.write_text(self.text()))

    def text(self) -> str:
        """A row takes one line: the file is read by eye and by ``git diff``."""
        rows = ",\n".join(f"    {json.dumps(row)}" for row in self.rows)
        environment = json.dumps(self.environment, indent=2).replace("\n", "\n  ")
        return f'{{\n  "environment": {environment},\n  "rows": [\n{rows}\n  ]\n}}\n'

    def of(self, job: Row) -> list[Row]:
        """The rows of a job, which is told apart by the fields in ``JOB``."""
        return [row for row in self.rows if all(row[name] == job[name] for name in JOB)]

    def put(self, rows: Iterable[Row]) -> None:
        """Adds rows, or replaces them where the same was measured before, and saves."""
        fresh = {identity(row): row for row in rows}
        self.rows = [fresh.pop(identity(row), row) for row in self.rows]
        self.rows.extend(fresh.values())
        self.save()

    def forget(self, wanted: Callable[[Row], bool]) -> None:
        self.rows = [row for row in self.rows if not wanted(row)]


def identity(row: Row) -> tuple:
    return tuple(row[name] for name in (*JOB, *WHO))


def fingerprint() -> str:
    """Of what kernels are made of, the compiled libraries too: unlike the commit it knows what is not committed yet."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*")):
        inside = path.relative_to(PACKAGE)
        counts = path.suffix in (".py", ".so") or inside.match("configs/*.json")
        if counts and inside.parts[0] not in ("bench", "robustness", "cli.py", "workloads.py"):
            digest.update(str(inside).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def environment(device: str, threads: int, malloc: str | None = None, commit: str | None = None) -> dict[str, Any]:
    """What was measured, on what; the ceilings come later."""
    here = {
        "device": name_of(device), "driver": None, "torch": torch.__version__, "triton": _triton_version(),
        "cuda": torch.version.cuda, "date": datetime.date.today().isoformat(), "commit": commit or git_commit(),
        "sources": fingerprint(), "python": platform.python_version(), "ccn_kernels": __version__, "threads": threads,
        "capability": torch.backends.cpu.get_cpu_capability(), "malloc": malloc,
    }  # fmt: skip
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        here |= {"driver": _driver(), "cudnn": torch.backends.cudnn.version(),
                 "processors": properties.multi_processor_count, "L2 bytes": properties.L2_cache_size}  # fmt: skip
    return here


def name_of(device: str) -> str:
    return torch.cuda.get_device_name(0) if device == "cuda" else processor()


def default_path(device: str, note: str = "") -> Path:
    """Among the checkout's results, or where there is no checkout in the current folder."""
    if (ROOT / "benchmarks" / "PERFORMANCE.md").exists():
        return RESULTS / f"{slug(device)}-{__version__}{note}.json"
    return Path(f"ccn-bench-{slug(device)}{note}.json")


def slug(device: str) -> str:
    """Its name, fit for a file's."""
    return re.sub(r"[^a-z0-9]+", "-", name_of(device).lower()).strip("-")


def git_commit() -> str | None:
    """The checkout's commit, "-dirty" if files differ from it; None where there is no checkout or no git."""
    if not (ROOT / ".git").exists():  # installed: a repository around it would be somebody else's
        return None
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


def brief(error: BaseException) -> str:
    """Why there is no time, in at most 600 characters."""
    text = without_paths(f"{type(error).__name__}: {error}".strip())
    if "out of memory" in text.lower() or "can't allocate memory" in text or isinstance(error, MemoryError):
        text = f"out of memory: {text}"
    return text if len(text) <= 600 else f"{text[:300]} ... {text[-300:]}"


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _triton_version() -> str | None:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None
