"""Measuring candidate tiles on the GPU at hand, and writing the fastest into a table (`ccn tune`)."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from ...files import read_json, write_json
from ...workloads import Layer
from . import config, heuristics, limits
from .backward_pass import Backward
from .forward_pass import Forward
from .launch import Problem
from .tiles import HYBRID, Device, Request, Tile

KINDS = ("forward", "dgrad", "wgrad")
TOLERANCE = 2e-2  # of a result against the hybrid's, relative and norm-wise; a tile beyond it is no candidate
Measure = Callable[[Callable[[], Any]], float]


def microseconds(call: Callable[[], Any]) -> float:
    """Median time of a call as a CUDA graph: kernels alone, the L2 cache flushed in between."""
    call()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return 1e3 * triton.testing.do_bench(graph.replay, return_mode="median")


def tune(
    layers: Sequence[Layer],
    dtypes: Sequence[str],
    out: Path,
    device: Device,
    *,
    again: bool = False,
    measure: Measure = microseconds,
    place: str = "cuda",
) -> Iterator[str]:
    """Measures every layer and pass that ``out`` lacks, and writes ``out`` after each; yields a line a pass.

    Raises:
        ValueError: ``out`` holds something else, or another GPU's table.
    """
    entries = {} if again or not out.exists() else _known(out, device)
    for layer in layers:
        for dtype in dtypes:
            for kind in KINDS:
                name = (json.dumps(layer._asdict()), dtype, kind)
                if name in entries:
                    yield f"{layer.name} {dtype} {kind}: measured before"
                    continue
                entry = _fastest(layer, dtype, kind, device, measure, place)
                entries[name] = entry
                write_json(out, _table(entries.values(), device))
                yield f"{layer.name} {dtype} {kind}: {entry['us']} us of {entry['candidates']} tiles, {entry['tile']}"


def _known(out: Path, device: Device) -> dict[tuple[str, str, str], dict[str, Any]]:
    content = read_json(out)
    if not isinstance(content, dict) or content.get("device") != device.name:
        raise ValueError(f"{out} is not a table of this GPU ({device.name}): name another file, or pass --again")
    config.read(out, device.name)  # complains of what is damaged
    return {(json.dumps(entry["layer"]), entry["dtype"], entry["kind"]): entry for entry in content["entries"]}


def _table(entries: Any, device: Device) -> dict[str, Any]:
    return {
        "device": device.name,
        "capability": device.capability,
        "processors": device.processors,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "date": datetime.date.today().isoformat(),
        "entries": list(entries),
    }


def _fastest(layer: Layer, dtype: str, kind: str, device: Device, measure: Measure, place: str) -> dict[str, Any]:
    run, request = _pass(layer, dtype, kind, device, place)
    expected = run(HYBRID if limits.can_run(HYBRID, request, device) is None else config.choose(request, device))
    times: dict[Tile, float] = {}
    for tile in heuristics.candidates(request, device):
        try:
            error = (run(tile) - expected).norm() / expected.norm()
        except triton.runtime.errors.OutOfResources:
            continue
        if error < TOLERANCE:  # NaN is not
            times[tile] = measure(lambda tile=tile: run(tile))  # type: ignore[misc]
    if not times:
        raise RuntimeError(f"{layer.name} {dtype} {kind}: no tile gave a right result")
    best = min(times, key=lambda tile: times[tile])
    return {
        "layer": layer._asdict(), "dtype": dtype, "kind": kind, "key": request.key, "us": round(times[best], 2),
        "candidates": len(times), "tile": dataclasses.asdict(best),
    }  # fmt: skip


def _pass(layer: Layer, dtype: str, kind: str, device: Device, place: str) -> tuple[Callable[[Tile], Tensor], Request]:
    """A function that runs one pass of a layer with a tile and gives its result, and the pass's request."""
    tensor_type = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
    x, w, bias, alpha = layer.operands(tensor_type, place)

    def problem(tiles: dict[str, Tile] | None = None) -> Problem:
        made = Problem(x, w, layer.spec, device, tiles=tiles)
        made.precision = "tf32" if dtype == "tf32" else "ieee"
        return made

    y, quotient, norm = Forward(problem(), bias, alpha, True).run()
    grad = torch.randn_like(y)

    def run(tile: Tile) -> Tensor:
        if kind == "forward":
            return Forward(problem({kind: tile}), bias, alpha, True).run()[0]
        mask = [kind == "dgrad", kind == "wgrad", False, False]
        results = Backward(problem({kind: tile}), grad, bias, alpha, None, quotient, norm, mask).run()
        return results[mask.index(True)]

    return run, problem().request(kind)
