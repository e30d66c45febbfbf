"""The measuring process, and the one that starts it, and starts another where it has died."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from . import record as records
from .clock import Clock, clock_of
from .floor import ceilings
from .jobs import Job, entrants, jobs
from .measure import measure
from .networks import Network
from .providers import Entrant
from .record import PACKAGE, Record, Row
from .settings import Settings
from .tell import progress
from .watch import Watch, last_word

# Fresh pages from malloc can cost more than a convolution. Threads that wander, too.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
STEADY = {**MALLOC, "OMP_PROC_BIND": "close"}
QUIET = {"KINETO_LOG_LEVEL": "99", "TORCHINDUCTOR_AUTOTUNE_NUM_CHOICES_DISPLAYED": "0"}  # pages for every call
LEAST_BUDGET = 10.0  # seconds that another process is started for
DEAD = "its process died: "
INTERRUPTED = 130


def run(settings: Settings) -> Record:
    """Measures what the record lacks, in processes of their own; returns the record.

    Raises:
        ValueError: nothing matches, or the file is no record of this device.
        RuntimeError: the measuring process failed, and none of its rows is to blame.
        KeyboardInterrupt: what was measured is kept.
    """
    everything = jobs(settings)
    record = opened(settings)
    if settings.again:
        wanted = {(*job.key.values(), *entrant) for job in everything for entrant in entrants(job, settings)}
        record.forget(lambda row: (*(row[name] for name in records.JOB), *who(row)) in wanted)
    record.save()
    if not any(missing(job, record, settings) for job in everything):
        return record
    started, word = time.monotonic(), word_of(settings)
    word.unlink(missing_ok=True)
    while True:
        left = settings.budget - (time.monotonic() - started)
        with pinned(settings.threads if settings.device == "cpu" else None):
            process = subprocess.Popen(command(replace(settings, budget=left, again=False)), env=surroundings(settings))
        code = wait(process)
        if code in (INTERRUPTED, -2):
            raise KeyboardInterrupt
        if code != 0 and not blame(settings, word, code):
            raise RuntimeError(f"the measuring process ended with {code}")
        left = settings.budget - (time.monotonic() - started)
        if code == 0 or left < LEAST_BUDGET:
            return Record.load(settings.out)


def opened(settings: Settings) -> Record:
    malloc = " ".join(f"{name}={value}" for name, value in MALLOC.items()) if settings.device == "cpu" else None
    environment = records.environment(settings.device, settings.threads, malloc, settings.commit)
    return Record.resume(settings.out, environment)


def command(settings: Settings) -> list[str]:
    return [sys.executable, "-m", "ccn_kernels.bench.child", settings.to_json()]


def surroundings(settings: Settings) -> dict[str, str]:
    """The measuring process's environment: this very package, and on a CPU steady memory and threads."""
    paths = os.pathsep.join(filter(None, (str(PACKAGE.parent), os.environ.get("PYTHONPATH"))))
    steady = {**STEADY, "OMP_NUM_THREADS": str(settings.threads)} if settings.device == "cpu" else {}
    return {**os.environ, "PYTHONPATH": paths, **QUIET, **steady}


@contextmanager
def pinned(threads: int | None) -> Iterator[None]:
    """What is started within may use so many of this process's processors."""
    if threads is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def wait(process: subprocess.Popen) -> int:
    try:
        return process.wait()
    except KeyboardInterrupt:  # which the process got as well, from a terminal; the file is whole at all times
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
        raise


def blame(settings: Settings, word: Path, code: int) -> bool:
    """Records what a process died of; False where it was at nothing in particular."""
    last = last_word(word)
    if last is None:
        return False
    rows, reason = last
    Record.load(settings.out).put([{**row, "failure": f"{DEAD}{reason} (exit status {code})"} for row in rows])
    return True


def word_of(settings: Settings) -> Path:
    return settings.out.with_suffix(".running.tmp")


def work(settings: Settings, record: Record, clock: Clock, watch: Watch) -> list[Job]:
    """Every job that the record lacks, until the budget is spent; returns those that are left.

    Memory formats of one pass take turns with each other: who is fastest in its own format is asked of one run.
    """
    rounds_of = {job: rounds(job, settings) for job in jobs(settings)}
    groups = [group for group in by_pass(rounds_of) if any(missing(job, record, settings) for job in group)]
    if groups:
        add_ceilings(record, clock, settings.dtypes)
    left, longest, started = list(groups), 0.0, time.monotonic()
    with progress(groups) as shown:
        for group in shown:
            begun = time.monotonic()
            if settings.budget - (begun - started) < longest:
                break
            rivals = [(job, entrant) for job in group for entrant in contenders(job, record, settings)]
            try:
                limits = record.environment["ceilings"]
                record.put(measure(rivals, clock, rounds_of[group[0]], limits, watch))
            finally:  # what gets here is no fault of the rows that were at work
                watch.clear()
            left.remove(group)
            longest = max(longest, time.monotonic() - begun)
    return [job for group in left for job in group]


def rounds(job: Job, settings: Settings) -> int:
    return max(5, settings.rounds // 4) if isinstance(job.work, Network) else settings.rounds


def by_pass(found: Iterable[Job]) -> list[Group]:
    """Jobs that differ in their memory format alone; networks, which are large, by themselves."""
    groups: dict[tuple, list[Job]] = {}
    for job in found:
        apart = job.memory_format if isinstance(job.work, Network) else None
        groups.setdefault((*job._replace(memory_format=""), apart), []).append(job)
    return [Group(group) for group in groups.values()]


class Group(tuple[Job, ...]):
    """Jobs that are measured together."""

    def __str__(self) -> str:
        first, *others = self
        return ", ".join([str(first), *(job.memory_format for job in others)])


def missing(job: Job, record: Record, settings: Settings) -> bool:
    known = {who(row) for row in record.of(job.key)}
    return not known.issuperset(entrants(job, settings))


def contenders(job: Job, record: Record, settings: Settings) -> list[Entrant]:
    """Those that are asked for, and those in the record: all ratios of a job come from one interleaved run.

    But for those that took a process with them.
    """
    rows = record.of(job.key)
    dead = {who(row) for row in rows if died(row)}
    found = dict.fromkeys([*entrants(job, settings), *map(who, rows)])
    return [entrant for entrant in found if entrant not in dead]


def who(row: Row) -> Entrant:
    return Entrant(row["provider"], row["variant"], row["backend"])


def died(row: Row) -> bool:
    return bool(row["failure"]) and row["failure"].startswith(DEAD)


def add_ceilings(
    record: Record, clock: Clock, dtypes: tuple[str, ...], find: Callable[..., dict[str, Any]] = ceilings
) -> None:
    known = record.environment.get("ceilings", {"bytes_per_s": None, "flop_per_s": {}})
    wanted = tuple(dtype for dtype in dtypes if dtype not in known["flop_per_s"])
    if wanted:
        found = find(clock, wanted)
        rates = {**known["flop_per_s"], **found["flop_per_s"]}
        record.environment["ceilings"] = {"bytes_per_s": found["bytes_per_s"], "flop_per_s": rates}
        record.save()


def main(text: str) -> int:
    """The measuring process's."""
    settings = Settings.from_json(text)
    torch.manual_seed(0)
    if settings.device == "cpu":
        torch.set_num_threads(settings.threads)
    torch.backends.cudnn.benchmark = True
    try:
        left = work(settings, opened(settings), clock_of(settings.device), Watch(word_of(settings)))
    except KeyboardInterrupt:
        return INTERRUPTED
    if left:
        print(f"the budget is spent: {len(left)} of the measurements are left, run the same again", file=sys.stderr)
    return 0


def selected(record: Record, settings: Settings) -> list[Row]:
    """The rows of a run."""
    keys = [job.key for job in jobs(settings)]
    return [row for key in keys for row in record.of(key)]
