"""A training step's gradients as a CUDA graph: one launch in the place of Python's for every layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .config import TrainConfig

EAGER_CALLS = 3  # before the capture: kernels are compiled and chosen, and libraries loaded, when first called


def pays(config: TrainConfig, device: torch.device, processes: int) -> bool:
    """Whether steps are to be captured. ``torch.compile`` brings graphs of its own, other processes cannot be."""
    return device.type == "cuda" and processes == 1 and config.compile is None


class Graphed:
    """``step(images, labels)``, which leaves gradients in ``parameters`` and never waits for the device.

    What the learning rate changes, the optimizer's step, is left out: a schedule needs no other graph. All that
    ``step`` writes besides must keep its place in memory. Batches must be of one shape.
    """

    def __init__(self, step: Callable[[Tensor, Tensor], None], parameters: Iterable[nn.Parameter]) -> None:
        self._step, self._parameters = step, list(parameters)
        self._calls = 0
        self._replay: Callable[[], Any] | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        if self._calls < EAGER_CALLS:
            self._calls += 1
            _aside(lambda: self._step(images, labels), images.device)
            return
        if self._replay is None:
            self._inputs = images.clone(), labels.clone()
            self._replay = _captured(lambda: self._step(*self._inputs), images.device)
            self._gradients = [parameter.grad for parameter in self._parameters]
        for ours, theirs in zip(self._inputs, (images, labels), strict=True):
            ours.copy_(theirs)
        self._replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient  # a step outside of the graph has put its own there


def _aside(run: Callable[[], None], device: torch.device) -> None:
    """On a stream of its own: what autograd keeps of the default stream could not be captured."""
    with torch.cuda.device(device):  # the current one may be another
        stream, before = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            run()
        before.wait_stream(stream)


def _captured(run: Callable[[], None], device: torch.device) -> Callable[[], Any]:
    """What ``run`` launches, to be launched again; it does not run now."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):  # a loader's thread pins memory
            run()
    return graph.replay
