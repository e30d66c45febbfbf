"""How a call is timed, and what memory it takes: by CUDA events and allocator on a GPU, by the host's on a CPU."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

LEAST_SWEEP = 256 << 20  # bytes


@dataclass
class Replay:
    """A call as it replays from its CUDA graph; ``result`` is what it writes, and stays where it is."""

    run: Callable[[], Any]
    result: Any
    call: Callable[[], Any]  # holds what the graph reads

    def __call__(self) -> None:
        self.run()


class GpuClock:
    device = "cuda"
    timings = ("eager", "graph")

    def __init__(self) -> None:
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        self._sweep = torch.empty(max(2 * cache, LEAST_SWEEP), dtype=torch.uint8, device="cuda")
        # Autograd runs a backward pass on its forward's stream, which must be the one that a graph is captured on:
        # all work goes to one stream, and not to the default one, which no graph can be captured on.
        self._stream = torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        torch.cuda.set_stream(self._stream)

    def sample(self, call: Callable[[], Any]) -> float:
        """Microseconds of one call, from an idle GPU whose L2 holds none of the call's data.

        The host starts on the call while the GPU still sweeps its cache, so a short call's launch is hidden, and what
        of the host's time is longer than the sweep shows: as it does for a user whose GPU is idle.
        """
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._sweep.fill_(1)
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return 1e3 * start.elapsed_time(stop)

    def replayable(self, call: Callable[[], Any]) -> Replay:
        for _ in range(3):
            call()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                result = call()
        finally:
            torch.cuda.set_stream(self._stream)  # a capture that fails may leave another one behind
        return Replay(graph.replay, result, call)

    def peak_bytes(self, call: Callable[[], Any]) -> int:
        """Bytes that live at most while a call runs, beside those that lived before it."""
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def is_lost(self) -> bool:
        """Whether an error has taken the whole CUDA context with it."""
        try:
            torch.cuda.synchronize()
            torch.ones(1, device="cuda").item()
        except RuntimeError as error:
            return "out of memory" not in str(error)
        return False

    def free(self) -> None:
        torch.cuda.empty_cache()


class HostClock:
    device = "cpu"
    timings = ("eager",)

    def sample(self, call: Callable[[], Any]) -> float:
        started = time.perf_counter()
        call()
        return 1e6 * (time.perf_counter() - started)

    def replayable(self, call: Callable[[], Any]) -> Replay:
        raise RuntimeError("a CPU has no CUDA graphs")

    def peak_bytes(self, call: Callable[[], Any]) -> int:
        """As a GPU's, of PyTorch's allocator: what libraries below it take for themselves is not seen."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as profiler:
            call()
        assert profiler.profiler is not None
        events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
        changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
        return max(0, *itertools.accumulate(changes, initial=0))

    def synchronize(self) -> None:
        pass

    def is_lost(self) -> bool:
        return False

    def free(self) -> None:
        pass


Clock = GpuClock | HostClock


def clock_of(device: str) -> Clock:
    return GpuClock() if device == "cuda" else HostClock()
