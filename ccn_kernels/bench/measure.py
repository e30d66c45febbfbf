"""Jobs that differ in their memory format: every contender is checked first, then all that are right take turns."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .case import Named, precision, relative_error
from .clock import Clock
from .floor import microseconds
from .jobs import Job, contender, cost
from .providers import Contender, Entrant
from .record import ROW, Row, brief
from .timing import interleaved
from .watch import Watch

Rival = tuple[Job, Entrant]
Key = tuple[Rival, str]  # who at what, and the timing


class Failed(Exception):
    """A contender's time may not be shown."""


def measure(rivals: Sequence[Rival], clock: Clock, rounds: int, limits: dict[str, Any], watch: Watch) -> list[Row]:
    """A row for every rival and timing: its times, or why there are none. All are of one dtype."""
    with precision(rivals[0][0].dtype):
        try:
            rows, calls = check(rivals, clock, limits, watch)
            take_turns(rows, calls, clock, rounds, watch)
        finally:
            calls = {}
            if "torch._dynamo" in sys.modules:
                torch.compiler.reset()
            clock.free()
    return [rounded(row | {"rounds": rounds}) for row in rows.values()]


def check(
    rivals: Sequence[Rival], clock: Clock, limits: dict[str, Any], watch: Watch
) -> tuple[dict[Key, Row], dict[Key, Callable[[], Any]]]:
    """Rows without times, and the calls that may be timed.

    Contenders are made one after the other, so that one that fails does not keep the others from running.
    """
    rows: dict[Key, Row] = {}
    calls: dict[Key, Callable[[], Any]] = {}
    for rival in rivals:
        job, entrant = rival
        mine = {(rival, timing): blank(job, entrant, timing, limits) for timing in clock.timings}
        rows |= mine
        watch.step(mine.values())
        for key, row in mine.items():
            try:
                if key[1] == "eager":
                    made = contender(job, entrant, clock.device)
                    calls[key] = checked(made, row, clock)
                elif (rival, "eager") in calls:
                    calls[key] = replayed(made, row, clock)
                else:  # it would fail as it did
                    row["failure"] = rows[rival, "eager"]["failure"]
            except Exception as error:
                fail(row, error, clock, watch)
    return rows, calls


def checked(made: Contender, row: Row, clock: Clock) -> Callable[[], Any]:
    """The call, once its results are right; notes its error and memory."""
    poison(made.expected)
    judge(made, made.call(), row)
    clock.synchronize()
    row["peak_mb"] = (clock.peak_bytes(made.call) + made.resident()) / 1e6
    return made.call


def replayed(made: Contender, row: Row, clock: Clock) -> Callable[[], Any]:
    """The same from its CUDA graph."""
    replay = clock.replayable(made.call)
    fill(replay.result)
    replay()
    judge(made, replay.result, row)
    clock.synchronize()
    row["peak_mb"] = None  # the graph's memory is its own
    return replay


def judge(made: Contender, results: Any, row: Row) -> None:
    errors = {name: relative_error(results[name], want) for name, want in made.expected.items()}
    if made.error is not None:
        errors["output"] = made.error
    worst = max(errors, key=lambda name: (errors[name] != errors[name], errors[name]))  # NaN is the worst of all
    row["relative_error"] = float(f"{errors[worst]:.3g}") if errors[worst] == errors[worst] else None
    if not errors[worst] <= made.limit:
        raise Failed(f"{worst} is wrong by {errors[worst]:.3g} (at most {made.limit:.0e})")


def take_turns(
    rows: dict[Key, Row], calls: dict[Key, Callable[[], Any]], clock: Clock, rounds: int, watch: Watch
) -> None:
    """Times all calls; those of whom one fails now start anew without it."""
    at: list[Key] = []

    def noted(key: Key) -> None:
        at[:] = [key]
        calls[key]()

    while calls:
        watch.step(row for key, row in rows.items() if key in calls)
        try:
            times = interleaved({key: functools.partial(noted, key) for key in calls}, rounds, clock.sample)
        except Exception as error:
            fail(rows[at[0]], error, clock, watch)
            del calls[at[0]]
            continue
        for key, found in times.items():
            note_times(rows[key], found)
        return


def note_times(row: Row, times: dict[str, float]) -> None:
    row |= {"median_us": times["median"], "p20_us": times["p20"], "p80_us": times["p80"]}
    if row["floor_us"] is not None:
        row["share_of_floor"] = row["floor_us"] / times["median"]
    if row["suite"].endswith("networks"):
        row["images_per_s"] = 1e6 * row["batch"] / times["median"]


def fail(row: Row, error: Exception, clock: Clock, watch: Watch) -> None:
    reason = str(error) if isinstance(error, Failed) else brief(error)
    if clock.is_lost():
        watch.leave(f"the CUDA context is lost: {reason}")
    row |= {"failure": reason, "peak_mb": None}


def blank(job: Job, entrant: Entrant, timing: str, limits: dict[str, Any]) -> Row:
    row: Row = dict.fromkeys(ROW) | job.key | entrant._asdict() | {"timing": timing}
    counted = cost(job)
    if counted is not None:
        row |= {"flop": counted[0], "bytes": counted[1], "floor_us": microseconds(*counted, job.dtype, limits)}
    return row


def rounded(row: Row) -> Row:
    """To what can be told apart."""
    digits = {"share_of_floor": 4, "images_per_s": 2}
    return {name: round(value, digits.get(name, 3)) if isinstance(value, float) and name != "relative_error" else value
            for name, value in row.items()}  # fmt: skip


def poison(expected: Named) -> None:
    """Leaves NaN in the memory that the allocator will hand out next, so that what is never written shows."""
    for dtype in (torch.bfloat16, torch.float32):
        for _ in range(2):
            _ = [torch.full_like(tensor, float("nan"), dtype=dtype) for tensor in expected.values()]


def fill(results: Any) -> None:
    """NaN over what a graph will write, so that a replay cannot live on what its capture left."""
    for value in results.values() if isinstance(results, dict) else ():
        if isinstance(value, Tensor) and value.is_floating_point():
            value.detach().fill_(float("nan"))
