"""Which backends there are, which can run a call, and why the others cannot.

A backend is a module with ``NAME``, ``unavailable() -> reason or None`` (cached by the module), ``unsupported(call)
-> reason or None``, ``forward`` and ``backward``. ``reference`` has no kernels: functional calls it directly, so that
autograd sees its plain operators.
"""

from __future__ import annotations

import logging
import os
from types import ModuleType
from typing import NamedTuple

import torch

from ..spec import ENVIRONMENT
from . import cpu, cuda, reference, triton

logger = logging.getLogger("ccn_kernels")

PREFERENCE = (triton, cuda, cpu, reference)  # fastest first
NAMES = tuple(backend.NAME for backend in reversed(PREFERENCE))


class Request(NamedTuple):
    """What the choice of a backend depends on."""

    device: str
    dtype: torch.dtype
    rank: int
    transformed: bool = False  # by forward-mode derivatives, by torch.func where that is compiled, or into ONNX
    wrapped: bool = False  # whether a tensor is a subclass that wraps others, as DTensor does


def get(name: str) -> ModuleType:
    """The backend module called ``name``."""
    for backend in PREFERENCE:
        if name == backend.NAME:
            return backend
    raise ValueError(f"backend must be one of {NAMES}, got {name!r}")


def available_backends() -> tuple[str, ...]:
    """Names of the backends that can run on this machine, the reference first."""
    return tuple(name for name in NAMES if get(name).unavailable() is None)


def rejection(name: str, request: Request) -> str | None:
    """Why backend ``name`` cannot run ``request``; None if it can."""
    return _rejection(get(name), request)


def _rejection(backend: ModuleType, request: Request) -> str | None:
    if backend is not reference and request.transformed:
        return "forward-mode derivatives (jvp), compiled transforms of torch.func and ONNX are the reference's alone"
    if backend is not reference and request.wrapped:
        return "a tensor is of a subclass that knows PyTorch's own operators alone"
    return backend.unavailable() or backend.unsupported(request)


def explain(
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    rank: int = 2,
    transformed: bool = False,
    wrapped: bool = False,
) -> dict[str, str | None]:
    """For each backend, fastest first: None if it may be chosen for such a call, else the reason why not."""
    request = Request(device, dtype, rank, transformed, wrapped)
    return {name: rejection(name, request) for name in reversed(NAMES)}


def select(
    requested: str | None,
    device: str,
    dtype: torch.dtype,
    rank: int,
    transformed: bool = False,
    wrapped: bool = False,
) -> str:
    """The backend for one call: the requested one, else that of ``CCN_BACKEND``, else the fastest that can run it.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the named backend cannot run the call; the message says why.
    """
    source = "backend"
    if requested is None:
        source, requested = ENVIRONMENT, os.environ.get(ENVIRONMENT) or None
    request = Request(device, dtype, rank, transformed, wrapped)
    if requested is None:
        return _fastest(request)
    if requested not in NAMES:
        raise ValueError(f"{source} must be one of {NAMES}, got {requested!r}")
    reason = rejection(requested, request)
    if reason is not None:
        raise RuntimeError(f"{source}={requested!r} cannot run this call: {reason}")
    return requested


# What torch.compiler.assume_constant_result does, which imports the whole compiler (and Triton) first.
select._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _fastest(request: Request) -> str:
    for backend in PREFERENCE:  # as `explain`, but the slower ones are not asked
        reason = _rejection(backend, request)
        if reason is None:
            return backend.NAME
        logger.debug("backend %s rejected: %s", backend.NAME, reason)
    raise AssertionError("the reference backend runs everything")
