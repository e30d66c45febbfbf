"""How a call is timed: by CUDA events on a GPU, by the host's clock in a dry run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

LEAST_SWEEP = 256 << 20  # bytes


@dataclass
class Replay:
    """A call as it replays from its CUDA graph; ``result`` is what it writes, and stays where it is."""

    run: Callable[[], Any]
    result: Any
    call: Callable[[], Any]  # holds what the graph reads

    def __call__(self) -> None:
        fresh = self.run()
        if fresh is not None:  # no graph, but the call itself
            self.result = fresh


class GpuClock:
    device = "cuda"

    def __init__(self) -> None:
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        self._sweep = torch.empty(max(2 * cache, LEAST_SWEEP), dtype=torch.uint8, device="cuda")

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
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                result = call()
        finally:
            torch.cuda.set_stream(current)  # a capture that fails leaves its own stream behind
        return Replay(graph.replay, result, call)

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

    def sample(self, call: Callable[[], Any]) -> float:
        started = time.perf_counter()
        call()
        return 1e6 * (time.perf_counter() - started)

    def replayable(self, call: Callable[[], Any]) -> Replay:
        return Replay(call, call(), call)

    def synchronize(self) -> None:
        pass

    def is_lost(self) -> bool:
        return False

    def free(self) -> None:
        pass
