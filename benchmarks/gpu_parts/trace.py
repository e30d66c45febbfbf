"""Where a persistent tile's time goes: the clock, noted as its consumers pass from one part of the work to the next."""

from __future__ import annotations

import functools
from math import ceil
from typing import Any

import torch
from torch import Tensor

from ccn_kernels.backends.triton import limits
from ccn_kernels.backends.triton.launch import Launch
from ccn_kernels.backends.triton.tiles import PERSISTENT_TILES, UNTRIED_TILES, Tile
from ccn_kernels.bench.case import Case
from ccn_kernels.bench.direct import Direct
from ccn_kernels.bench.record import brief
from ccn_kernels.workloads import Layer

from .passes import Recorder, label, precompile
from .run import Row, Rows, Run
from .tiles import case_of, described, forward_floor, layers

EVENTS = TURN, LEFT, DONE, WRITTEN = range(4)  # persistent.EVENTS
FIRST = 1  # tile of a program that counts: the one before waits for the launch before


def rows(run: Run) -> Rows:
    return {layer.name: functools.partial(trace, run, layer) for layer in layers(run)}


def trace(run: Run, layer: Layer) -> Row:
    """Cycles, medians over all tiles but each program's first, for every persistent tile that can run."""
    case = case_of(run, layer)
    problem = Direct(case).problem()
    request = problem.request("forward")
    tiles = [tile for tile in PERSISTENT_TILES + UNTRIED_TILES if not limits.can_run(tile, request, problem.device)]
    precompile(case, [({"forward": tile}, False) for tile in tiles], change=traced)
    entries: dict[str, Any] = {}
    for tile in tiles:
        if label(tile) in run.lost:
            entries[label(tile)] = {"failed": run.lost[label(tile)]}
            continue
        run.step(label(tile))
        try:
            entries[label(tile)] = cycles(*clocks_of(case, tile))
        except Exception as error:
            if run.clock.is_lost():
                run.leave(error)
            entries[label(tile)] = {"failed": brief(error)}
    run.step(None)
    return described(run, case, "trace", forward_floor(run, layer), entries, "forward")


def traced(launch: Launch) -> Launch:
    """A persistent launch with clocks [programs, tiles of a program, events] to fill; others as they are."""
    if "trace" not in launch.arguments:
        return launch
    programs, tiles = launch.grid[0], launch.arguments["tiles"]
    clocks = torch.zeros(
        programs, ceil(tiles / programs), len(EVENTS), dtype=torch.int64, device=launch.arguments["norm"].device
    )
    return launch._replace(arguments={**launch.arguments, "trace": clocks})


def clocks_of(case: Case, tile: Tile) -> tuple[Tensor, int]:
    """What a second run noted, and how many tiles there are."""
    recorder = Recorder()
    Direct(case, {"forward": tile}).forward(recorder)
    product = recorder.product()
    assert product is not None
    launch = traced(product)
    launch.run()  # compiles, loads
    launch.arguments["trace"].zero_()
    launch.run()
    return launch.arguments["trace"].cpu(), launch.arguments["tiles"]


def cycles(clocks: Tensor, tiles: int) -> dict[str, Any]:
    """Medians: what a tile takes, and the parts of it.

    "turn": its own products are under way, the other consumer's are not; "handed on": until the other one goes on;
    "drained": what is left of its products then; "written": division and copies; "idle": until its next turn, none
    where its own end is what the other waits for.
    """
    programs = clocks.shape[0]
    number = torch.arange(clocks.shape[1]) * programs + torch.arange(programs)[:, None]  # of the tile
    known = (number < tiles)[:, FIRST:]
    turn, left, done, written = (clocks[:, FIRST:, event] for event in (TURN, LEFT, DONE, WRITTEN))
    spans = {
        "tile": turn[:, 1:] - turn[:, :-1],
        "turn": left - turn,
        "handed on": turn[:, 1:] - left[:, :-1],
        "drained": done - left,
        "written": written - done,
        "idle": turn[:, 2:] - written[:, :-2],
    }
    found = {name: _median(span, known[:, known.shape[1] - span.shape[1] :]) for name, span in spans.items()}
    return {"tiles": tiles, "programs": programs, "cycles": found}


def _median(values: Tensor, known: Tensor) -> int | None:
    chosen = values[known]
    return int(chosen.median()) if len(chosen) else None
