"""Taking turns, and what is made of the samples."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

Key = TypeVar("Key", bound=Hashable)
WARM_UP = 3


def interleaved(
    calls: dict[Key, Callable[[], Any]], rounds: int, sample: Callable[[Callable[[], Any]], float]
) -> dict[Key, dict[str, float]]:
    """Percentiles of every call. They take turns: what changes with time (clocks, neighbours) meets all alike."""
    samples: dict[Key, list[float]] = {key: [] for key in calls}
    for turn in range(WARM_UP + rounds):
        for key, call in calls.items():
            elapsed = sample(call)
            if turn >= WARM_UP:
                samples[key].append(elapsed)
    return {key: percentiles(taken) for key, taken in samples.items()}


def percentiles(samples: list[float]) -> dict[str, float]:
    tenths = statistics.quantiles(samples, n=10, method="inclusive")  # never beyond what was measured
    return {"p20": tenths[1], "median": statistics.median(samples), "p80": tenths[7]}
