"""The compiled library: loaded once, when it is first needed; why it could not be is remembered."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch
from torch import Tensor

from ..spec import ConvSpec

PACKAGE = Path(__file__).resolve().parent.parent
LIBRARY = PACKAGE / "libccn_native.so"
BUILD_INFO = PACKAGE / "_build_info.json"
OPERATORS = "ccn_native"  # of torch.ops
HOW_TO_BUILD = (
    "to build it, install a C++ compiler, torch, ninja, pybind11 and setuptools, then run "
    "`CCN_BUILD={component} pip install --no-build-isolation .` in the source tree"
)


@functools.cache
def build_info() -> dict[str, str]:
    """What setup.py recorded: for each component "built", or the reason why it was left out."""
    try:
        return json.loads(BUILD_INFO.read_text())
    except FileNotFoundError:
        reason = "the package was not installed: setup.py has not run"
        return {"cpu": reason, "cuda": reason}


@functools.cache
def _load_error() -> str | None:
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"{LIBRARY.name} does not load: {error}"
    return None


@functools.cache
def missing(component: str) -> str | None:
    """Why the compiled ``component`` ("cpu" or "cuda") cannot be used; None, with the library loaded, if it can."""
    state = build_info().get(component, "unknown")
    if state != "built":
        return f"the {component} backend was not built ({state}); " + HOW_TO_BUILD.format(component=component)
    return _load_error()


def forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    spec: ConvSpec,
    save_quotient: bool,
    *,
    tf32: bool = False,
    operators: str = OPERATORS,
) -> tuple[Tensor, Tensor, Tensor]:
    """The compiled forward for the input's device: output, quotient, norm."""
    call = getattr(torch.ops, operators).compact_conv
    return call(input, weight, bias, alpha, *spec, save_quotient, tf32)


def backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    output: Tensor | None,
    quotient: Tensor | None,
    norm: Tensor,
    spec: ConvSpec,
    mask: list[bool],
    *,
    tf32: bool = False,
    operators: str = OPERATORS,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The compiled backward for the input's device: gradients of input, weight, alpha and bias."""
    call = getattr(torch.ops, operators).compact_conv_backward
    return call(grad, input, weight, bias, alpha, output, quotient, norm, *spec[:-1], mask, tf32)
