"""The parts that run programs: the tests, and compute-sanitizer over a small sweep of every kernel."""

from __future__ import annotations

import functools
import importlib.util
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
TAIL = 8_000  # characters of output that the record keeps
WORKERS = 8
OUTCOMES = ("passed", "failed", "errors", "error", "skipped", "xfailed", "xpassed", "deselected")


def tests(run: Run) -> Rows:
    return {"pytest": functools.partial(pytest, run)}


def sanitizer(run: Run) -> Rows:
    """The sweep alone first: it compiles what the tools then find in Triton's cache."""
    return {
        "sweep": functools.partial(sweep, run),
        "memcheck": functools.partial(check, run, "memcheck", 0.4),
        "racecheck": functools.partial(check, run, "racecheck", 1.0),
    }


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


def sweep(run: Run) -> Row:
    code, output = execute([sys.executable, str(SWEEP)], limit(run))
    row: Row = {"kind": "sweep", "exit": code, "output": output[-TAIL:]}
    if code != 0 or DONE not in output:
        row["failed"] = f"the sweep ended with {'a time-out' if code is None else code}: {output[-300:]}"
    return row


def check(run: Run, tool: str, share: float) -> Row:
    program = next((found for name in SANITIZER if (found := shutil.which(name))), None)
    if program is None or run.dry_run:
        return {
            "kind": "sanitizer",
            "unavailable": "compute-sanitizer is not installed" if program is None else "dry run",
        }
    command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, str(SWEEP)]
    # each tensor gets memory of its own, so that reads beyond one are seen
    code, output = execute(command, limit(run, share), {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
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
