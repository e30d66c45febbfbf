"""What is shown: progress, and a Markdown table of ratios."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from . import growth
from .record import Row

PEERS = ("conv_nobias", "two_branch", "two_branch_compiled", "two_branch_max_autotune", "cudnn_epilogue",
         "cudnn_frontend", "ccn", "ccn_cuda", "ccn_triton")  # fmt: skip
FORMS = (None, "ones", "pool")  # variants that compute the same; the others answer questions of their own
GROUP = ("suite", "workload", "batch", "pass", "dtype", "timing")
Times = dict[str, float]  # medians by provider, each in its fastest form and format


@contextmanager
def progress(jobs: Sequence[Any]) -> Iterator[Iterable[Any]]:
    """The jobs, with a bar where tqdm is installed, else with a line each."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield _printed(jobs)
        return
    with tqdm(jobs, unit="job", file=sys.stderr) as bar:
        yield _described(bar)


def _described(bar: Any) -> Iterator[Any]:
    for job in bar:
        bar.set_description(str(job))
        yield job


def _printed(jobs: Sequence[Any]) -> Iterator[Any]:
    for number, job in enumerate(jobs, 1):
        print(f"[{number}/{len(jobs)}] {job}", file=sys.stderr, flush=True)
        yield job


def summary(rows: Sequence[Row]) -> str:
    """Tables of layers and of networks, and what failed."""
    layers = [row for row in rows if row["images_per_s"] is None]
    blocks = [
        ratios(layers),
        throughput([row for row in rows if row["images_per_s"] is not None]),
        failures(rows),
        cliffs(rows),
    ]
    return "\n\n".join(block for block in blocks if block)


def ratios(rows: Sequence[Row]) -> str:
    """A line a workload and pass: the plain layer's time, and every other provider's over it; geometric means last."""
    cases = {case: times for case, times in fastest(rows).items() if "conv" in times}
    present = sorted({name for times in cases.values() for name in times} - {"conv"}, key=place)
    lines = [[*case, times["conv"], *over_plain(times, present), shares(rows, case)] for case, times in cases.items()]
    lines += means(cases, present)
    headers = [*GROUP, "conv µs", *(f"{peer} / conv" for peer in present), "ccn of floor"]
    return markdown(headers, lines) if cases else ""


def fastest(rows: Sequence[Row]) -> dict[tuple, Times]:
    """A provider of whom rows of several backends are shown counts once for each."""
    several = len({row["backend"] for row in rows if row["provider"] == "ccn"}) > 1
    found: dict[tuple, Times] = {}
    for row in rows:
        if row["median_us"] is not None and row["variant"] in FORMS:
            times = found.setdefault(tuple(row[name] for name in GROUP), {})
            name = f"ccn {row['backend']}" if several and row["provider"] == "ccn" else row["provider"]
            times[name] = min(row["median_us"], times.get(name, row["median_us"]))
    return found


def place(name: str) -> tuple[int, str]:
    return PEERS.index(name.split()[0]), name


def over_plain(times: Times, present: Iterable[str]) -> list[float | None]:
    return [times[peer] / times["conv"] if peer in times else None for peer in present]


def shares(rows: Iterable[Row], case: tuple) -> float | None:
    found = [row["share_of_floor"] for row in rows if row["provider"] == "ccn" and row["share_of_floor"] is not None
             and row["variant"] is None and tuple(row[name] for name in GROUP) == case]  # fmt: skip
    return max(found, default=None)


def means(cases: dict[tuple, Times], present: Sequence[str]) -> list[list[Any]]:
    groups: dict[tuple, list[Times]] = {}
    for (suite, _, _, *rest), times in cases.items():
        groups.setdefault((suite, *rest), []).append(times)
    lines = []
    for (suite, *rest), members in groups.items():
        values = [[times[peer] / times["conv"] for times in members if peer in times] for peer in present]
        geometric = [statistics.geometric_mean(found) if found else None for found in values]
        lines.append([suite, "geometric mean", None, *rest, None, *geometric, None])
    return lines


def throughput(rows: Sequence[Row]) -> str:
    lines = [[row["workload"], row["batch"], row["pass"], row["dtype"], row["timing"], row["memory_format"],
              " ".join(filter(None, (row["provider"], row["variant"], row["backend"]))), row["images_per_s"],
              row["peak_mb"]] for row in rows]  # fmt: skip
    headers = ["network", "batch", "pass", "dtype", "timing", "format", "by", "images/s", "peak MB"]
    return markdown(headers, lines) if rows else ""


def failures(rows: Iterable[Row]) -> str:
    """A line for every reason, with how many rows it keeps from a time and the first of them."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["failure"]:
            found.setdefault((row["provider"], row["failure"]), []).append(row)
    return "\n".join(
        f"- {provider}, {len(members)} rows ({members[0]['workload']} {members[0]['pass']} ...): {reason[:300]}"
        for (provider, reason), members in found.items()
    )


def cliffs(rows: Sequence[Row]) -> str:
    grown = [row for row in rows if row["suite"].startswith("growth-")]
    return growth.report(grown) if grown else ""


def markdown(headers: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    try:
        from tabulate import tabulate
    except ImportError:
        cells = [headers, ["---"] * len(headers), *([_cell(value) for value in line] for line in lines)]
        return "\n".join(f"| {' | '.join(line)} |" for line in cells)
    return tabulate(lines, headers, tablefmt="github", floatfmt=".2f", missingval="")


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
