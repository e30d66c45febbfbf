"""The backward pass: each of our launches alone, and both gradients by every candidate tile, beside cuDNN's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ccn_kernels.backends.triton import convolution
from ccn_kernels.backends.triton.launch import Launch
from ccn_kernels.bench.case import Case, Named, limit
from ccn_kernels.bench.direct import ALL, HYBRIDS, Direct, Tiles
from ccn_kernels.bench.floor import of_layer
from ccn_kernels.bench.settings import DTYPES
from ccn_kernels.workloads import Layer

from .measure import Contender, measure
from .passes import OURS, Recorder, bytes_of, candidates, is_product, name_of, precompile, resources
from .run import Row, Rows, Run
from .tiles import case_of, described, few, layers

MASKS = {"dgrad": [True, False, False, False], "wgrad": [False, True, False, False]}
GRADIENTS = {"dgrad": "input", "wgrad": "weight"}


def rows(run: Run) -> Rows:
    kinds: dict[str, Callable[[Run, Layer], Row]] = {
        "launches": launches, "dgrad": functools.partial(tiles, "dgrad"), "wgrad": functools.partial(tiles, "wgrad")
    }  # fmt: skip
    return {
        f"{layer.name} {kind}": functools.partial(row, run, layer)
        for kind, row in kinds.items()
        for layer in layers(run)
    }


def launches(run: Run, layer: Layer) -> Row:
    """Each launch of the default backward alone, beside cuDNN's two gradients."""
    case = case_of(run, layer)
    direct, recorder = Direct(case), Recorder()
    saved, grad = direct.forward(save_quotient=True), case.grad(OURS)
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
    return described(run, case, "launches", step_floor(run, layer), entries, "dgrad", "wgrad")


def tiles(kind: str, run: Run, layer: Layer) -> Row:
    """One gradient with every candidate tile, its prologue aside: what the gradient's own launches take."""
    case = case_of(run, layer)
    direct, grad = Direct(case), case.grad(OURS)
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
    return described(run, case, kind, gradient_floor(run, layer, kind), measure(run, contenders, ("replayed",)), kind)


def of_launch(launch: Launch, case: Case) -> Contender:
    moved, flop = bytes_of(launch), case.layer.flop if is_product(launch) else 0
    return Contender(launch.run, facts={"bytes": moved, "flop": flop, **resources(launch)})


def of_gradient(case: Case, kind: str, wanted: Tiles | None, saved: Named) -> Contender:
    """The launches (and cuDNN's call, if it takes part) after the prologue."""
    direct, recorder, name = Direct(case, wanted), Recorder(), GRADIENTS[kind]
    result = {name: direct.backward(saved, case.grad(OURS), MASKS[kind], recorder)[name]}
    prologue, *others = recorder.launches
    calls: list[Callable[[], Any]] = [launch.run for launch in others]
    if direct.problem().tile(kind).kernel == "hybrid":
        # what it returns goes nowhere: the launches read what the recorded call returned, which is as good
        e, problem = prologue.arguments["e"], direct.problem()
        product = functools.partial(convolution.backward, problem.spec, tuple(MASKS[kind][:2]))
        calls.insert(0, functools.partial(product, e, problem.x.tensor, problem.w.tensor))

    @torch.no_grad()
    def run() -> Named:
        for call in calls:
            call()
        return result

    launch = recorder.product()
    facts = {} if launch is None else resources(launch)
    return Contender(run, {name: case.expected_gradients(OURS)[name]}, limit(case.dtype_name, rival=False), facts)


@torch.no_grad()
def gradients(direct: Direct, grad: torch.Tensor, mask: list[bool]) -> None:
    """A plain convolution's, of input, weight and bias."""
    stride, bias = [direct.case.layer.stride] * 2, mask[3]
    torch.ops.aten.convolution_backward(
        grad, direct.case.x.detach(), direct.weight, [direct.case.layer.out_channels] if bias else None, stride, [1, 1],
        [1, 1], False, [0, 0], 1, [*mask[:2], bias],
    )  # fmt: skip


def gradient_floor(run: Run, layer: Layer, kind: str) -> dict[str, float]:
    """dgrad reads e and x and writes dx; wgrad reads e and x."""
    moved = layer.outputs + layer.weights + layer.inputs * (2 if kind == "dgrad" else 1)
    return run.floor(layer.flop, moved * DTYPES[run.dtype].itemsize)


def step_floor(run: Run, layer: Layer) -> dict[str, float]:
    return run.floor(*of_layer(layer, "training", DTYPES[run.dtype].itemsize))
