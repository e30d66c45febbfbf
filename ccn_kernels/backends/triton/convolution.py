"""Convolutions that ATen (on a GPU: cuDNN) computes for the hybrid path."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .launch import Problem

_settings = threading.Lock()


@contextmanager
def deterministic() -> Iterator[None]:
    """Keeps cuDNN from algorithms that add in no fixed order; its setting is global, hence the lock."""
    with _settings:
        before = torch._C._get_cudnn_deterministic()
        torch._C._set_cudnn_deterministic(True)
        try:
            yield
        finally:
            torch._C._set_cudnn_deterministic(before)


def _settings_of(problem: Problem) -> tuple:
    spec = problem.spec
    return spec.stride, spec.padding, spec.dilation, False, (0,) * spec.rank, spec.groups


def forward(problem: Problem) -> Tensor:
    """The plain convolution, without bias. [N, O, *out]"""
    if problem.spec.rank == 0:
        return problem.x.tensor @ problem.w.tensor.t()
    return torch.ops.aten.convolution(problem.x.tensor, problem.w.tensor, None, *_settings_of(problem))


def backward(problem: Problem, e: Tensor, mask: list[bool]) -> tuple[Tensor | None, Tensor | None]:
    """dgrad(e, W) and wgrad(e, x), those that ``mask`` asks for."""
    x, w = problem.x.tensor, problem.w.tensor
    if problem.spec.rank == 0:
        return e @ w if mask[0] else None, e.t() @ x if mask[1] else None
    with deterministic():
        dgrad, wgrad, _ = torch.ops.aten.convolution_backward(e, x, w, None, *_settings_of(problem), [*mask, False])
    return dgrad, wgrad


def transposed(weight: Tensor, groups: int) -> Tensor:
    """[C, O / groups, *kernel] of [O, C / groups, *kernel]: each group's channels exchanged."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
