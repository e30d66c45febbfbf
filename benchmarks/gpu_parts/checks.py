"""The parts that run programs: the tests, and compute-sanitizer over a small sweep of every kernel."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import re
import shutil
import sys
from collections import Counter

from ccn_kernels import backends
from ccn_kernels.bench.record import ROOT, without_paths

from .programs import execute
from .run import Row, Rows, Run

KERNELS = ("triton", "cuda")  # the backends that have some for a GPU
TESTS = ("tests/triton_backend", "tests/cuda_backend", "tests/gpu")
SWEEP = ROOT / "benchmarks" / "sanitizer_sweep.py"
DONE = "sweep: all right"  # the sweep's last line
SANITIZER = ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer")
TOOLS = ("memcheck", "synccheck", "initcheck", "racecheck")  # the slowest comes last
SHARE = 0.5  # of the time left, for one tool and backend
TAIL = 8_000  # characters of output that the record keeps
WORKERS = 8
OUTCOMES = ("passed", "failed", "errors", "error", "skipped", "xfailed", "xpassed", "deselected")


def tests(run: Run) -> Rows:
    return {"pytest": functools.partial(pytest, run)}


def sanitizer(run: Run) -> Rows:
    """The sweeps alone first: they compile what the tools then find in Triton's cache."""
    rows = {f"sweep, {name}": functools.partial(sweep, run, name) for name in KERNELS}
    pairs = itertools.product(TOOLS, KERNELS)
    return rows | {f"{tool}, {name}": functools.partial(check, run, tool, name) for tool, name in pairs}


def limit(run: Run, share: float = 1.0) -> float:
    """Seconds, of those that are left."""
    return max(10.0, share * run.left)


def pytest(run: Run) -> Row:
    command = [sys.executable, "-m", "pytest", *TESTS, "-vv", "--tb=short", "-rfEs"]
    if run.dry_run:
        command.append("--collect-only")
    elif importlib.util.find_spec("xdist"):  # most of the time goes into compiling, on one core a worker
        command += ["-n", str(min(WORKERS, os.cpu_count() or 1))]
    code, output = execute(command, limit(run))
    (run.folder / "tests.log").write_text(output)
    row: Row = {
        "kind": "tests",
        "exit": code,
        "counts": counts(output),
        "not run": not_run(run),
        "output": output[-TAIL:],
    }
    if code != 0:
        row["failed"] = f"pytest ended with {'a time-out' if code is None else code}: {row['counts']}"
    return row


def not_run(run: Run) -> dict[str, str]:
    """The backends that do not run here, and why: their tests are skipped."""
    reasons = backends.explain(run.device)
    return {name: without_paths(reason) for name in KERNELS if (reason := reasons[name])}


def counts(output: str) -> dict[str, int]:
    """pytest's own, from its last line; of a run that was cut short, what its lines say so far."""
    last = next((line for line in reversed(output.splitlines()) if re.search(r" in [\d.]+s", line)), "")
    found = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", last) if word in OUTCOMES}
    return found or dict(Counter(word.lower() for word in re.findall(r"\b(PASSED|FAILED|SKIPPED|ERROR)\b", output)))


def sweep(run: Run, name: str) -> Row:
    if reason := sweepless(run, name):
        return {"kind": "sweep", "unavailable": reason}
    code, output = execute(sweep_of(name), limit(run), {"CCN_EMULATED": "1"} if run.dry_run and name == "cuda" else {})
    row: Row = {"kind": "sweep", "exit": code, "output": output[-TAIL:]}
    if code != 0 or DONE not in output:
        row["failed"] = f"the sweep ended with {'a time-out' if code is None else code}: {output[-300:]}"
    return row


def sweep_of(name: str) -> list[str]:
    return [sys.executable, str(SWEEP), "--backends", name]


def sweepless(run: Run, name: str) -> str | None:
    """Why a backend's kernels are not swept; in a dry run all are, emulated or interpreted."""
    return None if run.dry_run else not_run(run).get(name)


def check(run: Run, tool: str, name: str) -> Row:
    program = next((found for name in SANITIZER if (found := shutil.which(name))), None)
    reason = "dry run" if run.dry_run else sweepless(run, name)
    if program is None or reason:
        return {"kind": "sanitizer", "unavailable": reason or "compute-sanitizer is not installed"}
    command = [program, "--tool", tool, "--error-exitcode", "9", *sweep_of(name)]
    # each tensor gets memory of its own, so that reads beyond one are seen
    code, output = execute(command, limit(run, SHARE), {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    return {"kind": "sanitizer", "exit": code, **verdict(code, output), "output": output[-TAIL:]}


def verdict(code: int | None, output: str) -> Row:
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", output)
    found = {"summary": summaries, "complete": DONE in output}
    if summaries and all(re.search(r"SUMMARY: 0 ", line) for line in summaries) and DONE in output:
        return found
    if re.search(r"(?i)not supported|unable to|failed to (?:initialize|attach|connect)", output) and DONE not in output:
        return {**found, "unavailable": "compute-sanitizer could not attach; see the output"}
    if code is None:
        return {**found, "unavailable": "it ran out of its time"}
    return {**found, "failed": "; ".join(summaries) or f"it ended with {code} and no summary: {output[-300:]}"}
