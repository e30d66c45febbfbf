"""Whole models: an inference, a training step, and what both take before and after the swap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .clock import Clock
from .factory import Subject, one_line
from .timing import WARM_UP, interleaved

Step = Callable[[], Any]


def inference(subject: Subject, model: nn.Module) -> Step:
    return torch.no_grad()(lambda: subject.run(model))


def training(subject: Subject, model: nn.Module) -> Step:
    """Forward, the mean square of every floating-point output as the loss, and all parameters' gradients."""

    def step() -> None:
        model.zero_grad(set_to_none=True)
        loss_of(subject.run(model)).backward()

    return step


def loss_of(outputs: Any) -> Tensor:
    """Raises:
    RuntimeError: no output depends on a parameter that learns.
    """
    found = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    squares = [output.float().square().mean() for output in found if output.requires_grad]
    if not squares:
        raise RuntimeError("no output of the model is a floating-point tensor with a gradient: nothing to train")
    return torch.stack(squares).sum()


def measure(subject: Subject, compact: nn.Module, clock: Clock, rounds: int) -> dict[str, Any]:
    """For both passes, of both models: microseconds, and the peak of memory beside the weights."""
    models = {"plain": subject.model, "compact": compact}
    return {
        name: _both(
            subject, {kind: model.train(name == "training") for kind, model in models.items()}, make, clock, rounds
        )
        for name, make in (("inference", inference), ("training", training))
    }


def _both(
    subject: Subject, models: dict[str, nn.Module], make: Callable[..., Step], clock: Clock, rounds: int
) -> dict[str, Any]:
    calls = {kind: make(subject, model) for kind, model in models.items()}
    try:
        peaks = {kind: _peak(call, models[kind], clock) for kind, call in calls.items()}
        times = interleaved(calls, rounds, clock.sample)
    except Exception as error:  # a model of any kind may fail in any way
        return {"failure": one_line(error)}
    finally:
        for model in models.values():
            model.zero_grad(set_to_none=True)
    return {kind: {**times[kind], "peak_mb": peaks[kind] / 1e6} for kind in calls}


def _peak(call: Step, model: nn.Module, clock: Clock) -> int:
    for _ in range(WARM_UP):  # a search for the fastest algorithm takes memory of its own
        call()
    model.zero_grad(set_to_none=True)
    return clock.peak_bytes(call)
