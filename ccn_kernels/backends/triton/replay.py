"""Passes replayed: what shapes, strides and settings decide is decided once.

The first call of a kind runs :class:`Forward` or :class:`Backward` and keeps its steps, their tensors replaced by the
parts that they play; the next such call only allocates, calls and launches. In eager code the rest would cost more
than the kernels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...known import KnownSpec
from ...spec import ConvSpec, fp32_precision
from . import native
from .backward_pass import Backward
from .forward_pass import Forward
from .launch import Called, Launch, Problem, is_descriptor
from .tiles import Device

MOST = 4096  # recipes kept; with more kinds of calls than that, all are recorded anew
Operands = tuple[Tensor | None, ...]


class Buffer(NamedTuple):
    """A tensor that a replay allocates."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def like(cls, tensor: Tensor) -> Buffer:
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)

    def make(self) -> Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=self.device)


class Step(NamedTuple):
    """One launch; ``parts`` are the positions of tensors (or of descriptors over them) among the arguments."""

    run: Callable[..., Any]
    arguments: list[Any]
    parts: list[tuple[int, int]]  # position, which tensor: the operands, then the buffers, then what calls returned

    def replay(self, tensors: list[Any]) -> None:
        arguments = self.arguments.copy()
        for position, part in self.parts:
            before = arguments[position]
            arguments[position] = tensors[part] if before is None else over(before, tensors[part])
        self.run(*arguments)


class Together(NamedTuple):
    """Launches that follow each other, by one call; by Triton's launcher while a profiler listens to it.

    The steps also keep the compiled kernels, which unload their code when they go.
    """

    steps: list[Step]
    batch: native.Batch

    def replay(self, tensors: list[Any]) -> None:
        if native.hooked():
            for step in self.steps:
                step.replay(tensors)
        else:
            self.batch.replay(tensors)


class Call(NamedTuple):
    """One call of ATen's, by the parts that it takes; launches after it were compiled for ``results`` of its first."""

    function: Callable[..., tuple[Tensor, ...]]
    parts: list[int]
    results: list[Buffer]

    def replay(self, tensors: list[Any]) -> None:
        found = self.function(*(tensors[part] for part in self.parts))
        for tensor, recorded in zip(found, self.results, strict=True):
            if tensor.stride() != recorded.stride or tensor.dtype != recorded.dtype:  # cuDNN was switched on or off
                tensor = recorded.make().copy_(tensor)
            tensors.append(tensor)


class Recipe(NamedTuple):
    """All steps of one kind of call, and which tensors are its results.

    A tensor among the buffers stands for a result that nobody asked for: all calls share it.
    """

    buffers: list[Buffer | Tensor]
    steps: list[Step | Call | Together]
    results: list[int]

    def replay(self, operands: Operands) -> tuple[Tensor, ...]:
        made = [buffer if isinstance(buffer, Tensor) else buffer.make() for buffer in self.buffers]
        tensors = [*operands, *made]
        for step in self.steps:
            step.replay(tensors)
        return tuple(tensors[part] for part in self.results)  # type: ignore[misc]


def over(descriptor: Any, base: Tensor | None) -> Any:
    """The same descriptor over another tensor, which the recipe's key has checked."""
    other = object.__new__(type(descriptor))
    other.__dict__.update(descriptor.__dict__)
    other.base = base
    return other


Recipes = dict[Hashable, Recipe | None]
_recipes: Recipes = {}


def forward(
    operands: tuple[Tensor, Tensor, Tensor | None, Tensor], spec: ConvSpec, save_quotient: bool, device: Device
) -> tuple[Tensor, Tensor, Tensor]:
    """The forward pass of input, weight, bias and alpha."""
    input, weight, bias, alpha = operands
    recipes: Recipes = _recipes
    key: Hashable
    if isinstance(spec, KnownSpec):
        aligned = tuple([None if tensor is None else tensor.data_ptr() % 16 for tensor in operands])
        recipes, key = spec.recipes, (save_quotient, _precision(input, spec), aligned)
    else:
        key = _key(operands, input, spec, save_quotient, device)
    recipe = recipes.get(key)
    if recipe is not None:
        return recipe.replay(operands)  # type: ignore[return-value]
    problem = Problem(input, weight, spec, device)
    results = Forward(problem, bias, alpha, save_quotient).run()
    _keep(recipes, key, operands, results, problem)
    return results


def backward(
    grad: Tensor, input: Tensor, weight: Tensor, others: Operands, spec: ConvSpec, mask: list[bool], device: Device
) -> tuple[Tensor, ...]:
    """The backward pass. ``others``: bias, alpha, output, quotient and norm."""
    operands = (grad, input, weight, *others)
    bias, alpha, output, quotient, norm = others
    key = _key(operands, input, spec, tuple(mask), device)
    recipe = _recipes.get(key)
    if recipe is not None:
        return recipe.replay(operands)
    problem = Problem(input, weight, spec, device)
    results = Backward(problem, grad, bias, alpha, output, quotient, norm, mask).run()  # type: ignore[arg-type]
    _keep(_recipes, key, operands, results, problem)
    return results


def _key(operands: Operands, input: Tensor, spec: ConvSpec, wanted: Any, device: Device) -> tuple:
    """What decides about a pass; a forward and a backward pass differ in their number of operands."""
    return (
        *(None if t is None else (t.shape, t.stride(), t.dtype, t.data_ptr() % 16) for t in operands),
        input.device, spec, wanted, device, _precision(input, spec),
    )  # fmt: skip


def _precision(input: Tensor, spec: ConvSpec) -> str | None:
    return fp32_precision(spec) if input.dtype == torch.float32 else None


def _keep(recipes: Recipes, key: Hashable, operands: Operands, results: Sequence[Tensor], problem: Problem) -> None:
    given = [id(tensor) for tensor in operands if tensor is not None]
    if len({*given}) < len(given):  # one tensor in two places: which of them a launch took cannot be told
        return
    if key not in recipes:
        if len(recipes) >= MOST:
            recipes.clear()
        recipes[key] = _record(operands, results, problem)


class _Untraced(Exception):
    """A tensor of which a replay would not know what it is."""


class _Parts(dict[int, int]):
    """For the identity of each tensor, its number among those of a replay."""

    def __missing__(self, key: int) -> int:
        raise _Untraced


def _record(operands: Operands, results: Sequence[Tensor], problem: Problem) -> Recipe | None:
    """The recipe of a pass; None where a step took, or the pass returned, a tensor that it did not trace."""
    known = (*operands, *problem.buffers)
    parts = _Parts({id(tensor): part for part, tensor in enumerate(known) if tensor is not None})
    count = len(operands) + len(problem.buffers)
    steps: list[Step | Call | Together] = []
    try:
        for are_calls, traced in itertools.groupby(problem.trace, lambda traced: isinstance(traced, Called)):
            if not are_calls:
                steps += _launches(list(traced), parts, _index(problem))  # type: ignore[arg-type]
                continue
            for call in traced:
                assert isinstance(call, Called)
                taken = [parts[id(tensor)] for tensor in call.operands]
                steps.append(Call(call.function, taken, [Buffer.like(tensor) for tensor in call.results]))
                for tensor in call.results:
                    parts[id(tensor)] = count
                    count += 1
        buffers = [_shared(made) if made.shape == (0,) else Buffer.like(made) for made in problem.buffers]
        return Recipe(buffers, steps, [parts[id(result)] for result in results])
    except _Untraced:
        return None


def _shared(unasked: Tensor) -> Tensor:
    """Another such tensor, for calls in any mode: one that inference mode has made could not be saved for backward."""
    with torch.inference_mode(False):
        return torch.empty_like(unasked)


def _index(problem: Problem) -> int | None:
    """Of the GPU; the interpreter has none."""
    return problem.x.tensor.device.index


def _launches(
    traced: list[tuple[Launch, Any]], parts: Mapping[int, int], device: int | None
) -> Sequence[Step | Together]:
    """Launches that follow each other: one call where that is possible."""
    steps = [_step(launch, compiled, parts) for launch, compiled in traced]
    if device is None or any(compiled is None for _, compiled in traced):  # the interpreter has no compiled kernels
        return steps
    batch = native.batch(traced, parts, device)
    return steps if batch is None else [Together(steps, batch)]


def _step(launch: Launch, compiled: Any, parts: Mapping[int, int]) -> Step:
    arguments = [launch.arguments[name] for name in launch.kernel.arg_names]
    tensors: list[tuple[int, int]] = []
    for position, value in enumerate(arguments):
        base = value.base if is_descriptor(value) else value
        if isinstance(base, Tensor):
            tensors.append((position, parts[id(base)]))
            arguments[position] = over(value, None) if is_descriptor(value) else None
    return Step(_runner(launch, compiled), arguments, tensors)


def _runner(launch: Launch, compiled: Any) -> Callable[..., Any]:
    """Launches without the look-up of the compiled kernel; the interpreter has none to look up."""
    if compiled is None:
        kernel, grid, options = launch.kernel, launch.grid, launch.options  # not the launch: it holds tensors
        return lambda *arguments: kernel[grid](*arguments, **options)
    return compiled[(*launch.grid, 1, 1)[:3]]
