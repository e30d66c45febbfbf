"""`ccn bench --mine`: what the swap to compact layers does to a user's own model, layer by layer and as a whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..files import write_json
from . import steps, swap
from .clock import clock_of
from .factory import FORMATS, load
from .record import environment
from .settings import Settings
from .tell import progress
from .work import INTERRUPTED, MALLOC, pinned, surroundings, wait

DTYPES = ("float32", "float16", "bfloat16", "float64")
ROUNDS = {"cpu": 11, "cuda": 50}


def start(settings: Settings, **options: Any) -> None:
    """``run`` in a process of its own, as steady as those of the named workloads.

    Raises:
        SystemExit: it failed, and has said why.
        KeyboardInterrupt: what was measured is shown and kept.
    """
    text = json.dumps({**options, "device": settings.device, "threads": settings.threads})
    with pinned(settings.threads if settings.device == "cpu" else None):
        process = subprocess.Popen([sys.executable, "-m", __name__, text], env=surroundings(settings))
    code = wait(process)
    if code in (INTERRUPTED, -2):
        raise KeyboardInterrupt
    if code:
        raise SystemExit(code)


def run(
    target: str,
    input: str | None = None,
    *,
    memory_format: str | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    rounds: int | None = None,
    out: str | None = None,
) -> dict[str, Any]:
    """Measures and prints; returns (and writes to the file ``out``) what was measured.

    Args:
        target, input: see ``factory.load``.
        memory_format, dtype: None leaves the model as its factory makes it.
        rounds: turns of plain and compact; None for ``ROUNDS``.

    Raises:
        ValueError: bad ``target`` or ``input``.
    """
    torch.manual_seed(0)
    torch.set_num_threads(threads or torch.get_num_threads())
    subject = load(
        target, input, device=device, dtype=getattr(torch, dtype) if dtype else None,
        memory_format=FORMATS[memory_format] if memory_format else torch.preserve_format,
    )  # fmt: skip
    compact, report = swap.swapped(subject.model)
    uses, rounds, clock = swap.uses(subject, compact, report.converted), rounds or ROUNDS[device], clock_of(device)
    malloc = " ".join(f"{name}={os.environ[name]}" for name in MALLOC if name in os.environ) or None
    result: dict[str, Any] = {
        "model": target, "environment": {**environment(device, torch.get_num_threads(), malloc), "rounds": rounds},
        "kept": report.kept, "not_run": _not_run(report.converted, uses), "layers": [], "whole": {},
    }  # fmt: skip
    try:
        with progress(uses) as shown:
            for use in shown:
                result["layers"].append(swap.measure_layer(use, clock, rounds))
                _save(out, result)
        result["whole"] = steps.measure(subject, compact, clock, rounds)
        _save(out, result)
    finally:  # what Ctrl-C leaves is shown
        print(describe(result), flush=True)
    return result


def _not_run(converted: Iterable[str], uses: Iterable[swap.Use]) -> list[str]:
    run = {name for use in uses for name in use.names}
    return [name for name in converted if name not in run]


def _save(out: str | None, result: dict[str, Any]) -> None:
    if out is not None:
        write_json(Path(out), result)


def describe(result: dict[str, Any]) -> str:
    """Tables of layers and of the whole model, what stays plain and why, and the verdict."""
    parts = [_layers(result["layers"])]
    kept = [f"stays plain: {name or 'the model'}: {reason}" for name, reason in result["kept"].items()]
    kept += [f"not run by this input: {name}" for name in result["not_run"]]
    parts.append("\n".join(kept))
    if result["whole"]:
        parts += [_whole(result["whole"]), verdict(result["whole"])]
    return "\n\n".join(part for part in parts if part)


def _layers(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "no layer that could be swapped was measured"
    headers = ["layer", "kind", "input", "calls"]
    headers += [f"{way}: {what}" for way in swap.PASSES for what in ("plain ms", "compact ms", "swap ms")]
    lines = [[_name(row), row["kind"], "x".join(map(str, row["input"])), row["calls"], *_times(row)] for row in rows]
    total: list[Any] = ["all of them", "", "", sum(row["calls"] for row in rows)]
    measured = [row for row in rows if row["failure"] is None]
    for way in swap.PASSES:
        plain, compact = (sum(r["calls"] * r[way][kind]["median"] for r in measured) / 1e3 for kind in swap.KINDS)
        total += [f"{plain:.3f}", f"{compact:.3f}", f"{compact - plain:+.3f}"]
    return _table([*lines, total], headers)


def _name(row: dict[str, Any]) -> str:
    first, *others = row["layers"]
    name = (first or "the model") + (f" and {len(others)} more" if others else "")
    return name + (" + ReLU" if row["relu_fused"] else "")


def _times(row: dict[str, Any]) -> list[str]:
    """One call's milliseconds, and what all calls gain (-) or lose (+)."""
    if row["failure"] is not None:
        return [row["failure"]]
    cells = []
    for way in swap.PASSES:
        plain, compact = (row[way][kind]["median"] / 1e3 for kind in swap.KINDS)
        cells += [f"{plain:.3f}", f"{compact:.3f}", f"{row['calls'] * (compact - plain):+.3f}"]
    return cells


def _whole(whole: dict[str, Any]) -> str:
    headers = ["whole model", "plain ms", "compact ms", "ratio", "plain peak MB", "compact peak MB", "ratio"]
    lines = []
    for name, both in whole.items():
        if "failure" in both:
            lines.append([name, both["failure"]])
            continue
        cells = [name]
        for what, scale in (("median", 1e3), ("peak_mb", 1.0)):
            plain, compact = (both[kind][what] / scale for kind in swap.KINDS)
            cells += [f"{plain:.2f}", f"{compact:.2f}", f"{compact / plain:.2f}" if plain else ""]
        lines.append(cells)
    return _table(lines, headers) + "\n(peaks are beside the weights)"


def verdict(whole: dict[str, Any]) -> str:
    said = []
    for name, what in (("training", "A training step"), ("inference", "an inference")):
        if "failure" in whole[name]:
            said.append(f"{what} fails: {whole[name]['failure']}")
            continue
        plain, compact = (whole[name][kind] for kind in swap.KINDS)
        tie = plain["p20"] <= compact["p80"] and compact["p20"] <= plain["p80"]
        said.append(
            f"{what} takes {compact['median'] / plain['median']:.2f} times as long after the swap"
            + (" (within the runs' spread)" if tie else "")
            + (f" and {compact['peak_mb'] / plain['peak_mb']:.2f} times the memory" if plain["peak_mb"] else "")
        )
    return "; ".join(said) + "."


def _table(lines: list[list[Any]], headers: list[str]) -> str:
    try:
        from tabulate import tabulate
    except ImportError:
        return "\n".join(" | ".join(map(str, line)) for line in [headers, *lines])
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def main(text: str) -> int:
    """The measuring process's."""
    torch.backends.cudnn.benchmark = True
    try:
        run(**json.loads(text))
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ValueError, OSError, RuntimeError) as error:
        print(f"ccn: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
