"""Forward and backward: rivals, each launch of our backward pass alone, tiles of dgrad and wgrad, torch.compile."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from providers import COMPILED
from shapes import RESNET50, TINY, VGG11, Shape

from ccn_kernels.backends.triton import convolution
from ccn_kernels.backends.triton.launch import Launch

from .case import Case, Named, training
from .forward import described, few, floor_of, limit, telling
from .measure import Contender, measure
from .passes import (
    ALL,
    HYBRIDS,
    Direct,
    Recorder,
    Tiles,
    bytes_of,
    candidates,
    is_product,
    name_of,
    precompile,
    resources,
)
from .run import Row, Rows, Run

LAYERS = ("plain", "plain, relu", "two-branch, ones", "two-branch, pool", "ours", "ours, relu")
FAMILIES = {"plain": "plain", "plain, relu": "plain, relu", "ours, relu": "ours, relu"}  # all others: "ours"
MASKS = {"dgrad": [True, False, False, False], "wgrad": [False, True, False, False]}
GRADIENTS = {"dgrad": "input", "wgrad": "weight"}


def rows(run: Run) -> Rows:
    shapes = TINY if run.dry_run else (*VGG11, *RESNET50)
    kinds: dict[str, Callable[[Run, Shape], Row]] = {
        "rivals": rivals, "launches": launches, "dgrad": functools.partial(tiles, "dgrad"),
        "wgrad": functools.partial(tiles, "wgrad"),
    }  # fmt: skip
    return {
        **{
            f"{shape.name} {kind}": functools.partial(row, run, shape)
            for kind, row in kinds.items()
            for shape in shapes
        },
        **{f"{shape.name} compiled": functools.partial(compiled, run, shape) for shape in telling(shapes)},
    }


def case_of(run: Run, shape: Shape) -> Case:
    return Case(shape, torch.float32 if run.dry_run else torch.bfloat16, run.device)


def rivals(run: Run, shape: Shape) -> Row:
    case = case_of(run, shape)
    precompile(case, [(None, False), (None, True), (HYBRIDS, False), (HYBRIDS, True)], ALL)
    contenders = {name: functools.partial(of_layer, case, name) for name in LAYERS}
    contenders["ours, hybrid"] = functools.partial(of_tiles, case, HYBRIDS, False)
    contenders["ours, hybrid, relu"] = functools.partial(of_tiles, case, HYBRIDS, True)
    return described(case, "rivals", floor(case), measure(run, contenders), "forward", "dgrad", "wgrad")


def compiled(run: Run, shape: Shape) -> Row:
    case = case_of(run, shape)
    contenders = {name: functools.partial(of_layer, case, name) for name in ("plain", "ours")}
    # the pool alone: Inductor fuses it, while it leaves a convolution with ones to cuDNN
    contenders |= {name: functools.partial(of_compiled, run, case, name) for name in COMPILED if "pool" in name}
    try:
        return described(case, "compiled", floor(case), measure(run, contenders))
    finally:
        torch.compiler.reset()


def launches(run: Run, shape: Shape) -> Row:
    """Each launch of the default backward alone, beside cuDNN's two gradients."""
    case = case_of(run, shape)
    direct, recorder = Direct(case), Recorder()
    saved, grad = direct.forward(save_quotient=True), case.grad("ours")
    run.step("ours, backward")
    direct.backward(saved, grad, issue=recorder)
    contenders: dict[str, Callable[[], Contender]] = {
        "ours, backward": lambda: Contender(lambda: direct.backward(saved, grad)),
        "cudnn, backward": lambda: Contender(functools.partial(gradients, direct, grad, ALL)),
        "cudnn, dgrad": lambda: Contender(functools.partial(gradients, direct, grad, MASKS["dgrad"])),
        "cudnn, wgrad": lambda: Contender(functools.partial(gradients, direct, grad, MASKS["wgrad"])),
    }
    for number, launch in enumerate(recorder.launches):
        contenders[f"{number} {name_of(launch)}"] = functools.partial(of_launch, launch, case)
    entries = measure(run, contenders, ("replayed",))
    return described(case, "launches", floor(case), entries, "dgrad", "wgrad")


def tiles(kind: str, run: Run, shape: Shape) -> Row:
    """One gradient with every candidate tile, its prologue aside: what the gradient's own launches take."""
    case = case_of(run, shape)
    direct, grad = Direct(case), case.grad("ours")
    saved = direct.forward(save_quotient=True)
    contenders: dict[str, Callable[[], Contender]] = {
        f"cudnn, {kind}": lambda: Contender(functools.partial(gradients, direct, grad, MASKS[kind])),
        "ours": functools.partial(of_gradient, case, kind, None, saved),
    }
    if direct.problem().tile(kind).kernel != "hybrid":
        contenders["ours, hybrid"] = functools.partial(of_gradient, case, kind, HYBRIDS, saved)
    found = few(run, candidates(case, kind))
    precompile(case, [({kind: tile}, False) for tile in found.values()], MASKS[kind])
    for name, tile in found.items():
        contenders[name] = functools.partial(of_gradient, case, kind, {kind: tile}, saved)
    least = floor_of(shape.flop, gradient_bytes(case, kind), case.dtype)
    return described(case, kind, least, measure(run, contenders, ("replayed",)), kind)


def of_layer(case: Case, name: str) -> Contender:
    family = FAMILIES.get(name, "ours")
    call = training(case.layer(name), case.x, case.grad(family))
    return Contender(call, case.expected_gradients(family), limit(case, name))


def of_compiled(run: Run, case: Case, name: str) -> Contender:
    call = training(case.compiled(name, run.dry_run), case.x, case.grad("ours"))
    return Contender(call, case.expected_gradients("ours"), limit(case, name))


def of_tiles(case: Case, wanted: Tiles, relu: bool) -> Contender:
    family = "ours, relu" if relu else "ours"
    call = functools.partial(Direct(case, wanted, relu).training, case.grad(family))
    return Contender(call, case.expected_gradients(family), limit(case, "ours"))


def of_launch(launch: Launch, case: Case) -> Contender:
    moved, flop = bytes_of(launch), case.shape.flop if is_product(launch) else 0
    return Contender(launch.run, facts={"bytes": moved, "flop": flop, **resources(launch)})


def of_gradient(case: Case, kind: str, wanted: Tiles | None, saved: Named) -> Contender:
    """The launches (and cuDNN's call, if it takes part) after the prologue."""
    direct, recorder, name = Direct(case, wanted), Recorder(), GRADIENTS[kind]
    result = {name: direct.backward(saved, case.grad("ours"), MASKS[kind], recorder)[name]}
    prologue, *others = recorder.launches
    calls: list[Callable[[], Any]] = [launch.run for launch in others]
    if direct.problem().tile(kind).kernel == "hybrid":
        # what it returns goes nowhere: the launches read what the recorded call returned, which is as good
        e, mask = prologue.arguments["e"], MASKS[kind][:2]
        calls.insert(0, functools.partial(convolution.backward, direct.problem(), e, mask))

    @torch.no_grad()
    def run() -> Named:
        for call in calls:
            call()
        return result

    product = recorder.product()
    facts = {} if product is None else resources(product)
    return Contender(run, {name: case.expected_gradients("ours")[name]}, limit(case, "ours"), facts)


@torch.no_grad()
def gradients(direct: Direct, grad: torch.Tensor, mask: list[bool]) -> None:
    """A plain convolution's, of input, weight and bias."""
    stride, bias = [direct.case.shape.stride] * 2, mask[3]
    torch.ops.aten.convolution_backward(
        grad, direct.case.x.detach(), direct.weight, [direct.case.shape.out_channels] if bias else None, stride, [1, 1],
        [1, 1], False, [0, 0], 1, [*mask[:2], bias],
    )  # fmt: skip


def gradient_bytes(case: Case, kind: str) -> int:
    """dgrad reads e and x and writes dx; wgrad reads e and x."""
    shape = case.shape
    moved = shape.outputs + shape.weights + shape.inputs * (2 if kind == "dgrad" else 1)
    return moved * case.dtype.itemsize


def floor(case: Case) -> dict[str, float]:
    """Of this design: three products; x read three times, dx; y, g, and the quotient and e written and read again."""
    shape = case.shape
    return floor_of(3 * shape.flop, (4 * shape.inputs + 7 * shape.outputs) * case.dtype.itemsize, case.dtype)
