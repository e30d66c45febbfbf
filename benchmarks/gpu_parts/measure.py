"""Contenders of one row: first each is checked, then those that are right take turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ccn_kernels.bench.case import Named, relative_error
from ccn_kernels.bench.measure import fill, poison
from ccn_kernels.bench.record import brief
from ccn_kernels.bench.timing import interleaved

from .run import Run

WAYS = ("called", "replayed")


class Contender(NamedTuple):
    """A call, what it must return (None: it is not checked), and how far off it may be."""

    call: Callable[[], Any]
    expected: Named | None = None
    limit: float = 0.0
    facts: dict[str, Any] = {}  # noqa: RUF012 - of a tuple's field, never changed; recorded beside the times


def measure(run: Run, contenders: Mapping[str, Callable[[], Contender]], ways=WAYS) -> dict[str, dict[str, Any]]:
    """For each contender its error and, in microseconds, percentiles as called and as replayed from a CUDA graph.

    Contenders are made one after the other, so that one that fails does not keep the others from running.
    """
    entries: dict[str, dict[str, Any]] = {}
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, make in contenders.items():
        if name in run.lost:
            entries[name] = {"failed": run.lost[name]}
            continue
        run.step(name)
        try:
            entries[name], checked = _check(run, make(), ways)
            calls |= {(name, way): call for way, call in checked.items()}
        except Exception as error:
            if run.clock.is_lost():
                run.leave(error)
            word = "refused" if type(error).__name__ == "OutOfResources" else "failed"
            entries[name] = {word: brief(error)}
    run.step(None)
    for (name, way), times in interleaved(calls, run.rounds, run.clock.sample).items():
        entries[name][way] = {key: round(value, 3) for key, value in times.items()}
    return entries


def _check(run: Run, contender: Contender, ways: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Callable]]:
    """The entry so far, and the calls whose results are right."""
    entry: dict[str, Any] = dict(contender.facts)
    poison(contender.expected or {})
    entry |= judge(contender, contender.call())
    calls: dict[str, Callable] = {"called": contender.call} if "called" in ways else {}
    if "replayed" in ways and "red gate" not in entry:
        replay = calls["replayed"] = run.clock.replayable(contender.call)
        fill(replay.result)
        replay()
        entry |= judge(contender, replay.result)
    run.clock.synchronize()
    return entry, {} if "red gate" in entry else calls


def judge(contender: Contender, results: Any) -> dict[str, Any]:
    if contender.expected is None:
        return {}
    errors = {name: relative_error(results[name], want) for name, want in contender.expected.items()}
    wrong = {name: error for name, error in errors.items() if not error < contender.limit}  # NaN is wrong
    entry: dict[str, Any] = {"errors": {name: float(f"{error:.3g}") for name, error in errors.items()}}
    if wrong:
        entry["red gate"] = ", ".join(f"{name} off by {error:.3g}" for name, error in wrong.items())
    return entry
