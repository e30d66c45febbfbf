"""What the patch norms cost: one kernel with every way to find them, and without any."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any

import triton

from ccn_kernels.backends.triton import limits
from ccn_kernels.backends.triton.tiles import SQUARES, Tile
from ccn_kernels.bench.case import Case
from ccn_kernels.bench.direct import Direct
from ccn_kernels.workloads import Layer

from .kernels import no_squares
from .measure import Contender, measure
from .passes import Recorder, default_tile, name_of, precompile, resources
from .run import Row, Rows, Run
from .tiles import case_of, described, forward_floor, layers


def rows(run: Run) -> Rows:
    return {layer.name: functools.partial(squares, run, layer) for layer in layers(run)}


def squares(run: Run, layer: Layer) -> Row:
    """The default kernel, its squares found in the loop, at the centre's taps, in a plane made before; or not at all.

    Every launch is timed alone: what makes the plane, and what adds up a split sum, are entries of their own. So is
    what no kernel can do without: to write the output.
    """
    case = case_of(run, layer)
    default = default_tile(case, "forward")
    contenders: dict[str, Callable[[], Contender]] = {"output alone": functools.partial(of_output, case)}
    if default.kernel in ("descriptor", "gather"):
        request, device = Direct(case).problem().request("forward"), Direct(case).problem().device
        tiles = [dataclasses.replace(default, squares=way) for way in SQUARES]
        tiles = [tile for tile in tiles if limits.can_run(tile, request, device) is None]
        precompile(case, [({"forward": tile}, False) for tile in tiles])
        for tile in tiles:
            contenders[tile.squares] = functools.partial(of_kernel, case, tile)
        plane = dataclasses.replace(default, squares="plane")
        contenders["none"] = functools.partial(of_kernel, case, plane, without_squares)
        contenders |= {f"plane: {name}": make for name, make in others(case, plane).items()}
    return described(
        run, case, "ablation", forward_floor(run, layer), measure(run, contenders, ("replayed",)), "forward"
    )


def of_kernel(case: Case, tile: Tile, changed: Callable[[Any], Any] = lambda kernel: kernel) -> Contender:
    recorder = Recorder()
    Direct(case, {"forward": tile}).forward(recorder)
    launch = recorder.product()
    assert launch is not None
    launch = launch._replace(kernel=changed(launch.kernel))
    return Contender(launch.run, facts=resources(launch))


def of_output(case: Case) -> Contender:
    return Contender(Direct(case).forward()["output"].zero_)


def others(case: Case, tile: Tile) -> dict[str, Callable[[], Contender]]:
    """The launches beside the product's."""
    recorder = Recorder()
    Direct(case, {"forward": tile}).forward(recorder)
    rest = [launch for launch in recorder.launches if launch is not recorder.product()]
    return {name_of(launch): functools.partial(Contender, launch.run) for launch in rest}


def without_squares(kernel: Any) -> Any:
    """The kernel with a constant for its box sums of the plane: nothing of the norm is left but the division."""
    function = kernel.fn
    scope = {**function.__globals__, "patch_squares": no_squares}
    bare = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__)
    bare.__module__, bare.__qualname__ = function.__module__, function.__qualname__
    bare.__annotations__ = function.__annotations__
    return triton.jit(bare, do_not_specialize=getattr(kernel, "do_not_specialize", None))
