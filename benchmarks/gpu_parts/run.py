"""What a part's rows are measured with, and how they are worked off within a budget."""

from __future__ import annotations

import faulthandler
import functools
import gc
import json
import math
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ccn_kernels.bench.clock import HostClock, Replay
from ccn_kernels.bench.floor import ceilings, microseconds
from ccn_kernels.bench.record import brief

from .record import Record, failures

ROW_LIMIT = 240.0  # seconds after which a row counts as hung
PROGRAMS = ("tests", "sanitizer")  # their rows are other programs, which have time limits of their own
OVERTIME = 50.0  # seconds that a row may run beyond the budget
WRONG = ("red gate", "failed", "refused")  # why a contender has no time
LOST = 3  # exit status of a process whose CUDA context is gone
Row = dict[str, Any]
Rows = dict[str, Callable[[], Row]]


class DryReplay(Replay):
    """No graph, but the call itself."""

    def __call__(self) -> None:
        self.result = self.call()


class DryClock(HostClock):
    def replayable(self, call: Callable[[], Any]) -> Replay:
        return DryReplay(call, call(), call)


class Run:
    """One process at one part."""

    def __init__(self, clock: Any, rounds: int, dry_run: bool, budget: float, folder: Path, part: str) -> None:
        self.clock, self.rounds, self.dry_run, self.folder = clock, rounds, dry_run, folder
        self.dtype = "float32" if dry_run else "bfloat16"
        self._limit = math.inf if part in PROGRAMS else ROW_LIMIT
        self.device = clock.device
        self.lost: dict[str, str] = {}  # contenders of this row that took a process with them, and how
        self._started, self._budget = time.monotonic(), budget
        self._row: str | None = None
        self._step: str | None = None

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return self._budget - (time.monotonic() - self._started)

    def floor(self, flop: int, moved: int) -> dict[str, float]:
        """The least that is computed and moved, and the microseconds that takes by this GPU's measured ceilings."""
        return {"flop": flop, "bytes": moved, "microseconds": microseconds(flop, moved, self.dtype, self._ceilings)}

    @functools.cached_property
    def _ceilings(self) -> dict[str, Any]:
        return ceilings(self.clock, (self.dtype,), (1 << 12, 64) if self.dry_run else None)

    def step(self, name: str | None) -> None:
        """Leaves word of what is done now, for the process that will ask why this one died."""
        self._step = name
        self._leave_word("a crash or a hang")

    def _leave_word(self, reason: str) -> None:
        word = {"row": self._row, "step": self._step, "reason": reason}
        running(self.folder).write_text(json.dumps(word))

    def work(self, record: Record, part: str, rows: Rows) -> None:
        """Every row that is not recorded yet, until the budget is spent."""
        results, longest = record.part(part)["rows"], 0.0
        for key, compute in rows.items():
            if key in results:
                continue
            if self.left < longest or self.left <= 0:
                break
            started = time.monotonic()
            results[key] = {
                **self._compute(record, part, key, compute),
                "seconds": round(time.monotonic() - started, 1),
            }
            longest = max(longest, time.monotonic() - started)
            record.save()
            say(part, key, results[key])

    def _compute(self, record: Record, part: str, key: str, compute: Callable[[], Row]) -> Row:
        self._row = key
        self.lost = record.data["parts"][part].get("lost", {}).get(key, {})
        self.step(None)
        print(f"[{part}] {key} ...", flush=True)
        faulthandler.dump_traceback_later(max(1.0, min(self._limit, self.left + OVERTIME)), exit=True)
        try:
            return compute()
        except Exception as error:
            traceback.print_exc()
            if self.clock.is_lost():
                self.leave(error)
            return {"failed": brief(error)}
        finally:
            faulthandler.cancel_dump_traceback_later()
            gc.collect()
            self.clock.free()

    def leave(self, error: Exception) -> NoReturn:
        """The parent reads which step it was, and starts another process for the rest."""
        self._leave_word(f"the CUDA context is lost: {brief(error)}")
        print(f"the CUDA context is lost at {self._step}: {error}", flush=True)
        os._exit(LOST)


def running(folder: Path) -> Path:
    return folder / "running.tmp"


def say(part: str, key: str, row: Row) -> None:
    """A line a row, and one for each of its contenders that has no time to show."""
    entries = row.get("providers", {})
    medians = {name: entry.get("replayed", entry.get("called")) for name, entry in entries.items()}
    shown = "; ".join(f"{name} {time['median']:.1f}" for name, time in medians.items() if time)
    print(f"[{part}] {key}: {shown} ({row['seconds']} s)", flush=True)
    others = [f"{name} {word}: {entry[word]}" for name, entry in entries.items() for word in WRONG if word in entry]
    for text in others or failures(row):
        print(f"    ! {text[:200]}", flush=True)
