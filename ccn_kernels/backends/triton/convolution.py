"""Convolutions that ATen (on a GPU: cuDNN) computes for the hybrid path."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ...spec import ConvSpec
from .launch import with_channels_innermost

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


def _settings_of(spec: ConvSpec) -> tuple:
    return spec.stride, spec.padding, spec.dilation, False, (0,) * spec.rank, spec.groups


def forward(spec: ConvSpec, x: Tensor, w: Tensor) -> tuple[Tensor]:
    """The plain convolution, without bias. [N, O, *out]"""
    if spec.rank == 0:
        return (x @ w.t(),)
    return (torch.ops.aten.convolution(x, w, None, *_settings_of(spec)),)


def backward(spec: ConvSpec, mask: tuple[bool, bool], e: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """Of dgrad(e, W) and wgrad(e, x) those that ``mask`` asks for."""
    if spec.rank == 0:
        return tuple(
            product() for product, asked in zip((lambda: e @ w, lambda: e.t() @ x), mask, strict=True) if asked
        )
    with deterministic():
        found = torch.ops.aten.convolution_backward(e, x, w, None, *_settings_of(spec), [*mask, False])
    return tuple(gradient for gradient, asked in zip(found, mask, strict=False) if asked)


def transposed(groups: int, weight: Tensor) -> tuple[Tensor]:
    """[C, O / groups, *kernel] of [O, C / groups, *kernel], channels innermost: each group's channels exchanged."""
    exchanged = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return with_channels_innermost(exchanged)
