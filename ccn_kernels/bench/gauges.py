"""Time and memory of one call, on a CPU or a GPU."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def sampler(device: torch.device) -> Callable[[Callable[[], Any]], float]:
    """Microseconds of one call, by the host's clock; a GPU's queue is empty before and after."""

    def sample(call: Callable[[], Any]) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1e6 * (time.perf_counter() - started)

    return sample


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Bytes that live at most while a call runs, beside those that lived before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells of every start and stop
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    changes = [
        event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()) if event.name() == "[memory]"
    ]
    return max(itertools.accumulate(changes), default=0)
