"""Reading the records of benchmarks/results: what compare, plot and readme share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ccn_kernels.files import read_json

Row = dict[str, Any]

FORMS = (None, "ones", "pool")  # variants that compute the same thing, so that the fastest of them counts
NAMES = {
    "conv": "F.conv2d",
    "conv_nobias": "F.conv2d without bias",
    "two_branch": "two-branch",
    "two_branch_compiled": "two-branch, compiled",
    "two_branch_max_autotune": "two-branch, max-autotune",
    "cudnn_epilogue": "cuDNN + our epilogue",
    "cudnn_frontend": "cuDNN's fused graph",
    "ccn": "ccn_kernels",
    "ccn_cuda": "ccn_kernels, CUDA C++",
    "ccn_triton": "ccn_kernels, Triton",
}


class Record(NamedTuple):
    """One device and version; rows are as the harness wrote them."""

    path: Path
    environment: dict[str, Any]
    rows: list[Row]

    @property
    def gpu(self) -> bool:
        return "NVIDIA" in self.environment["device"]

    @property
    def dtype(self) -> str:
        """The dtype that the targets are set for."""
        return "bfloat16" if self.gpu else "float32"

    @property
    def timing(self) -> str:
        """Replayed graphs tell kernels apart from launches; a CPU has none."""
        return "graph" if any(row["timing"] == "graph" for row in self.rows) else "eager"

    @property
    def name(self) -> str:
        """The device's, as files are named after it."""
        return self.path.stem.removesuffix(f"-{self.environment['ccn_kernels']}")

    def main_rows(self, suite: str, step: str) -> list[Row]:
        """Of a suite and pass, in the dtype and timing that the targets are set for."""
        return select(self.rows, {"suite": suite, "pass": step, "dtype": self.dtype, "timing": self.timing})


def load(path: Path) -> Record:
    """A record.

    Raises:
        ValueError: there is no such file, or it is no record; the message names it.
    """
    content = read_json(path)
    if content is None:
        raise ValueError(f"{path}: there is no such file")
    if not is_record(content):
        raise ValueError(f"{path} is no record of `ccn bench`: it lacks environment or rows")
    return Record(path, content["environment"], content["rows"])


def is_record(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and {"environment", "rows"} <= content.keys()
        and all("suite" in row for row in content["rows"])
    )


def newest(folder: Path, *, gpu: bool) -> Record | None:
    """The latest record of a GPU, or of a CPU; other files there, and what `ccn bench` put aside, do not count."""
    paths = [path for path in sorted(folder.glob("*.json")) if not path.name.endswith(".old.json")]
    records = [load(path) for path in paths if is_record(read_json(path))]
    wanted = [record for record in records if record.gpu == gpu]
    return max(wanted, key=lambda found: [found.environment[name] for name in ("date", "ccn_kernels")], default=None)


def select(rows: Iterable[Row], wanted: dict[str, Any]) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def by_workload(rows: Iterable[Row]) -> dict[tuple[str, int], list[Row]]:
    """Rows by workload and batch, in the order in which they were measured."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["workload"], row["batch"]), []).append(row)
    return groups


def fastest(rows: Iterable[Row], provider: str) -> Row | None:
    """A provider's fastest row over forms and memory formats, among those that ran and were right."""
    ran = (
        row
        for row in rows
        if row["provider"] == provider
        and row["variant"] in FORMS
        and row["backend"] != "reference"
        and row["median_us"] is not None
    )
    return min(ran, key=lambda row: row["median_us"], default=None)


def ratio(rows: Sequence[Row], above: str, below: str) -> float | None:
    """Of two providers' medians, each at its fastest."""
    a, b = fastest(rows, above), fastest(rows, below)
    return None if a is None or b is None else a["median_us"] / b["median_us"]


def channels(workload: str) -> tuple[int, int]:
    """In and out, from a name like "vgg11 64-128@16"."""
    found = re.search(r"(\d+)-(\d+)", workload)
    if found is None:
        raise ValueError(f"workload {workload!r} does not name its channels")
    return int(found[1]), int(found[2])


def arrows(workload: str) -> str:
    """ "64-128@16" as it is shown."""
    return re.sub(r"(\d)-(\d)", r"\1→\2", workload)


def markdown(lines: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    """A table, without the columns that say nothing."""
    from tabulate import tabulate

    kept = [i for i in range(len(headers)) if any(line[i] not in (None, "") for line in lines)]
    if not kept:
        return ""
    columns = [[line[i] for line in lines] for i in kept]
    sides = ["right" if any(isinstance(value, int | float) for value in column) else "left" for column in columns]
    cells = zip(*([cell(value) for value in column] for column in columns), strict=True)
    return tabulate(cells, [headers[i] for i in kept], tablefmt="pipe", disable_numparse=True, colalign=sides)


def cell(value: Any) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
