"""What the record and the file beside it say: tables of the parts, and the targets."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ccn_kernels.bench import tell
from ccn_kernels.bench.record import Record as Throughput
from ccn_kernels.bench.record import Row
from ccn_kernels.bench.tell import markdown

from . import THROUGHPUT
from .record import Record, failures
from .targets import median, targets

Providers = dict[str, dict[str, Any]]


def summary(path: Path, diagnostics: Record, parts: Iterable[str]) -> str:
    """Tables of these parts, all targets, and what is missing or wrong."""
    record = Throughput.load(path) if path.exists() else Throughput(path, {})
    blocks = {
        "tests": [("tests", checks(diagnostics, "tests"))],
        "sanitizer": [("sanitizer", checks(diagnostics, "sanitizer"))],
        "gradients": [("backward, microseconds; by launch, with the share of the floor of each", launches(diagnostics)),
                      ("best tiles, backward", best_tiles(diagnostics, "gradients"))],
        "tiles": [("best tiles, forward", best_tiles(diagnostics, "tiles"))],
        "ablation": [("forward kernel, by where its squares come from, microseconds", ablation(diagnostics))],
        "trace": [("persistent tiles, cycles", traces(diagnostics))],
        "host": [("host, microseconds a call", host(diagnostics))],
    }  # fmt: skip
    parts = list(parts)
    chosen = [("the library", library(diagnostics)), *(block for part in parts for block in blocks.get(part, []))]
    if any(part in THROUGHPUT for part in parts):
        chosen.append((f"throughput; ceilings: {ceilings(record)}", tell.summary(kernel_times(record.rows))))
    chosen.append(("targets", targets(record.rows, diagnostics)))
    return "\n\n".join(
        [*(f"{title}\n\n{text}" for title, text in chosen if text), *missing(diagnostics), *wrongs(diagnostics)]
    )


def kernel_times(rows: Iterable[Row]) -> list[Row]:
    """Without what is timed as called, where there is a graph; and no backward pass of its own."""
    rows = [row for row in rows if row["pass"] != "backward" or row["failure"]]
    graphs = any(row["timing"] == "graph" for row in rows)
    return [row for row in rows if row["timing"] == "graph"] if graphs else rows


def ceilings(record: Throughput) -> str:
    found = record.environment.get("ceilings")
    if found is None:
        return "not measured"
    rates = ", ".join(f"{dtype} {rate / 1e12:.0f} TFLOP/s" for dtype, rate in found["flop_per_s"].items())
    return f"copy {found['bytes_per_s'] / 1e12:.2f} TB/s, product in {rates}"


# Diagnostics.


def providers_of(record: Record, part: str, kind: str) -> dict[str, Providers]:
    """By shape."""
    return {row["shape"]["name"]: row["providers"] for row in record.rows(part).values() if row.get("kind") == kind}


def launches(record: Record) -> str:
    lines = []
    for name, by in providers_of(record, "gradients", "launches").items():
        single = [
            f"{key.split(' ', 1)[1]} {time:.1f} ({entry.get('share of floor', 0):.0%})"
            for key, entry in by.items()
            if key[0].isdigit() and (time := median(by, key, "replayed")) is not None
        ]
        whole = [median(by, f"{who}", "replayed")
                 for who in ("ours, backward", "cudnn, backward", "cudnn, dgrad", "cudnn, wgrad")]  # fmt: skip
        lines.append([name, *whole, "; ".join(single)])
    return table(["shape", "ours", "cudnn", "its dgrad", "its wgrad", "ours by launch"], lines)


def best_tiles(record: Record, part: str) -> str:
    """Where another tile than the default is the fastest, and its time over the default's."""
    lines = []
    for key, row in record.rows(part).items():
        by = row.get("providers", {}) if row.get("kind") in ("tiles", "dgrad", "wgrad") else {}
        times = {name: time for name in by if not name.startswith(("conv", "cudnn"))
                 and (time := median(by, name, "replayed"))}  # fmt: skip
        if "ours" in times:
            best = min(times, key=times.__getitem__)
            lines.append([key, row["kind"], times["ours"], best, times[best] / times["ours"]])
    return table(["row", "of", "ours", "best tile", "tile / ours"], lines)


def ablation(record: Record) -> str:
    rows = providers_of(record, "ablation", "ablation")
    names = list(dict.fromkeys(name for by in rows.values() for name in by))
    return table(["shape", *names], [[shape, *(median(by, name, "replayed") for name in names)]
                                     for shape, by in rows.items()])  # fmt: skip


def traces(record: Record) -> str:
    rows = {(shape, tile): entry["cycles"] for shape, by in providers_of(record, "trace", "trace").items()
            for tile, entry in by.items() if "cycles" in entry}  # fmt: skip
    spans = list(next(iter(rows.values()), {}))
    return table(["shape", "tile", *spans], [[*where, *found.values()] for where, found in rows.items()])


def host(record: Record) -> str:
    rows = {key: row["providers"] for key, row in record.rows("host").items() if "providers" in row}
    names = list(dict.fromkeys(name for by in rows.values() for name in by))
    return table(["by", *rows], [[name, *(median(by, name, "called") for by in rows.values())] for name in names])


def table(headers: list[str], lines: list[list[Any]]) -> str:
    return markdown(headers, lines) if lines else ""


def checks(record: Record, part: str) -> str:
    lines = []
    for key, row in record.rows(part).items():
        said = row.get("unavailable") or row.get("failed") or row.get("counts") or row.get("summary") or "right"
        lines.append(f"{key}: {said}")
        lines += [f"{key} of {name}: not run, {reason}" for name, reason in row.get("not run", {}).items()]
    return "\n".join(lines)


def library(record: Record) -> str:
    return "\n".join(f"{name}: {said}" for name, said in record.data.get("library", {}).items())


def missing(record: Record) -> list[str]:
    return [
        f"{name}: {len(part['missing'])} rows are missing, call again for them: {', '.join(part['missing'])}"
        for name, part in record.data["parts"].items()
        if part.get("missing")
    ]


def wrongs(record: Record) -> list[str]:
    """What failed, shortened: the record has all of it."""
    lines = [f"{name}: {part['failed']}" for name, part in record.data["parts"].items() if "failed" in part]
    for part in record.data["parts"]:
        for key, row in record.rows(part).items():
            lines += [f"{part}, {key}: {text[:300]}" for text in failures(row)]
    return ["failures\n" + "\n".join(lines)] if lines else []
