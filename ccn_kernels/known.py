"""Calls like ones that were made before: what is decided about such a call is decided once.

In eager code the checks of a call, and the choice of what runs it, would take longer than a small layer's kernels.
"""

from __future__ import annotations

import marshal
import os
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from .spec import ENVIRONMENT, ConvSpec, autocasts

MOST = 4096  # calls kept; with more kinds than that, all are forgotten
PLAIN = (Tensor, Parameter)
VALUES = 2  # marshal's version that tells values alone; later ones tell which of them are one object, too


class KnownSpec(ConvSpec):
    """The spec of all calls of one signature, whose operands are its own: nothing was cast, padded or sliced.

    Attributes:
        backend: which one runs them.
        recipes: what that backend keeps for them.
    """

    backend: str
    recipes: dict[Hashable, Any]


_known: dict[Hashable, KnownSpec] = {}


def signature(rank: int, operands: tuple[Any, ...], settings: tuple[Any, ...], backend: str | None) -> Hashable | None:
    """All that decides about a call: plain, strided operands as they lie, and settings. None for any other call."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or forward_ad._current_level >= 0:
        return None
    if torch._C._are_functorch_transforms_active() or type(operands[0]) not in PLAIN:
        return None
    if autocasts(operands[0].device.type):
        return None
    try:
        described = [None if operand is None else _described(operand) for operand in operands]
        numbers = marshal.dumps((*settings, backend), VALUES)  # in which True is not 1, nor 1.0; symbols it refuses
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return None
    return (rank, numbers, os.environ.get(ENVIRONMENT), *described)


def tells(settings: tuple[Any, ...]) -> bool:
    """Whether a signature tells these settings from all others: of NumPy's numbers it has the bytes alone."""
    return all(
        value is None or type(value) in (int, float, str) or (type(value) in (tuple, list) and tells(tuple(value)))
        for value in settings
    )


def _described(tensor: Tensor) -> Hashable:
    """Raises TypeError for what is no plain tensor; tensors without strides raise what they like."""
    if type(tensor) not in PLAIN or tensor.is_neg():
        raise TypeError
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device  # its address would copy what is copied on write


def find(key: Hashable | None) -> KnownSpec | None:
    return _known.get(key)


def keep(key: Hashable, spec: ConvSpec, backend: str) -> KnownSpec:
    if len(_known) >= MOST:
        _known.clear()
    known = KnownSpec(*spec)
    known.backend, known.recipes = backend, {}
    _known[key] = known
    return known
