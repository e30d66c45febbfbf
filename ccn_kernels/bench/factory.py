"""A user's own model, from a file or a module, and what it runs on."""

from __future__ import annotations

import copy
import re
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .. import factories
from .record import brief

FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


class Subject(NamedTuple):
    """A model, ours to change, and the arguments of its forward."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, model: nn.Module | None = None) -> Any:
        return (model or self.model)(*self.args, **self.kwargs)


def load(
    target: str,
    input: str | None = None,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.preserve_format,
) -> Subject:
    """A copy of the model that ``FILE.py:FACTORY`` (or ``PACKAGE.MODULE:FACTORY``) makes, and its inputs.

    Args:
        target: the factory takes no arguments and returns a module, or a module and its example inputs: a tuple of
            them, a dict of keyword arguments, or one tensor. A module in place of the factory will do.
        input: the shape of one random floating-point input, ``"8x3x224x224"``; for a factory that returns no inputs.
        dtype: of parameters and floating-point inputs; None leaves them as they are.

    Raises:
        ValueError: no such file, module or name, what it makes is no module, or the model refuses the input.
    """
    made = factories.made(target, "--mine")
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise ValueError(f"--mine: {target} must return an nn.Module, or (module, inputs), got {_kind(made)}")
    if (inputs is None) == (input is None):
        owner = "the factory returns a model without inputs: give their shape" if inputs is None else "is the factory's"
        raise ValueError(
            f"--input: {owner}, like 8x3x224x224" if inputs is None else f"--input {input}: {owner} to say"
        )
    model = duplicate(model).to(device, dtype)
    if input is not None:
        inputs = torch.randn(shape(input), dtype=_dtype_of(model))
    args, kwargs = _arguments(inputs)

    def place(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().to(device, dtype if tensor.is_floating_point() else None)
        return tensor.contiguous(memory_format=memory_format) if tensor.dim() == 4 else tensor

    subject = Subject(model, tree_map_only(Tensor, place, args), tree_map_only(Tensor, place, kwargs))
    _try(subject, input)
    if memory_format != torch.preserve_format:
        model.to(memory_format=memory_format)  # type: ignore[call-overload]
    return subject


def duplicate(model: nn.Module) -> nn.Module:
    """A deep copy. Weights that a hook computes belong to a graph and cannot be copied: they are detached."""
    held = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in held if not value.is_leaf})


def shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(x\d+)*", text):
        raise ValueError(f"--input must be a shape like 8x3x224x224, got {text!r}")
    return tuple(int(size) for size in text.split("x"))


def one_line(error: BaseException) -> str:
    return brief(error).splitlines()[0]


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, dict):
        return (), inputs
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), {}


def _dtype_of(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())


def _try(subject: Subject, input: str | None) -> None:
    """One run, which also gives lazy layers their shapes."""
    try:
        with torch.no_grad():
            subject.run()
    except Exception as error:
        if input is None:
            raise ValueError(f"--mine: the model refuses the factory's own inputs: {one_line(error)}") from error
        raise ValueError(
            f"--input {input}: the model refuses it: {one_line(error)} (where a model takes integers, or "
            "several inputs, let the factory return (model, inputs))"
        ) from error


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"
