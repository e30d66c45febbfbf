"""The forward pass: allocation, and the launches of the chosen kernel and of the passes around it."""

from __future__ import annotations

import functools
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor

from . import convolution, epilogue
from . import fprop as kernels
from .geometry import ONES, Axes
from .launch import (
    CONSTANTS,
    PLACES,
    WEIGHT_AXES,
    Launch,
    Operand,
    Problem,
    image_descriptor,
    operand,
    packed_weight,
    pass_tile,
    rows_first_descriptor,
    tiles_of,
    weight_descriptor,
    width,
)
from .limits import is_unrolled, keeps_weights, rows_first, written_part
from .tiles import Tile


class Forward:
    """One forward pass; ``run`` returns output, quotient (empty unless saved) and norm."""

    def __init__(self, problem: Problem, bias: Tensor | None, alpha: Tensor, save_quotient: bool) -> None:
        geometry = problem.geometry
        self.problem, self.geometry, self.alpha = problem, geometry, alpha
        self.bias = bias if bias is None else bias.contiguous()
        y = torch.empty(problem.shape, dtype=problem.dtype, device=alpha.device, memory_format=problem.format)
        self.y = operand(problem.own(y))
        self.quotient = problem.own(torch.empty_like(y)) if save_quotient else None
        self.norm = problem.empty(geometry.batch, geometry.groups, *problem.shape[2:])

    def run(self) -> tuple[Tensor, Tensor, Tensor]:
        if self.y.tensor.numel():
            tile = self.problem.tile("forward")
            getattr(self, f"_{tile.kernel}")(tile)
        quotient = self.quotient if self.quotient is not None else self.problem.empty(0, dtype=self.problem.dtype)
        return self.y.tensor, quotient, self.norm

    def _results(self) -> dict[str, Any]:
        return {
            "y": self.y.tensor, "quotient": self.quotient, "norm": self.norm, "bias": self.bias, "alpha": self.alpha,
            "delta": self.problem.spec.delta, "RELU": self.problem.spec.relu,
        }  # fmt: skip

    def _descriptor(self, tile: Tile) -> None:
        problem, geometry = self.problem, self.geometry
        box = problem.box(tile, geometry.extent)
        tiles = tiles_of(geometry.batch, geometry.extent, box)
        blocks = ceil(geometry.out_channels / tile.outputs)
        programs = tiles[0] * tiles[1] * tiles[2] * geometry.groups * blocks
        x, w = problem.boxed(problem.x, packed=not geometry.is_plain), problem.boxed(problem.w, packed=True)
        overlapped = tile.squares == "plane" and problem.device.overlaps
        arguments = {
            "x": image_descriptor(x, geometry.in_extent, geometry.stride, box, tile.depth),
            "w": weight_descriptor(w, geometry.taps, (tile.outputs, tile.depth)),
            **self.y.named("y"), "tiles_h": tiles[1], "tiles_w": tiles[2], "tiles_o": blocks, "BOX": box,
            "OVERLAPPED": overlapped,
        }  # fmt: skip
        self._product(kernels.forward_descriptor, tile, arguments, programs,
                      geometry.taps * ceil(geometry.in_channels / tile.depth), overlapped)  # fmt: skip

    def _persistent(self, tile: Tile) -> None:
        from . import persistent  # Gluon, which not every Triton has

        problem, geometry = self.problem, self.geometry
        box = problem.box(tile, geometry.extent)
        tiles = tiles_of(geometry.batch, geometry.extent, box)
        blocks = ceil(geometry.out_channels / tile.outputs)
        programs = prod(tiles) * blocks
        box = rows_first(box) if tile.boxes else box
        read = (1, *box[1:]) if tile.boxes else box
        part, outputs = written_part(tile, box)

        def image(source: Operand, extent: Axes, box: Axes, channels: int) -> Any:
            if tile.boxes:
                return persistent.swizzled(rows_first_descriptor(source, extent, box, channels))
            return persistent.swizzled(image_descriptor(source, extent, ONES, box, channels))

        def result(tensor: Tensor | None) -> Any:
            return None if tensor is None else image(operand(tensor), geometry.extent, part, outputs)

        w = weight_descriptor(problem.boxed(problem.w, packed=True), geometry.taps, (tile.outputs, tile.depth))
        arguments = {
            **self._results(), "y": result(self.y.tensor), "quotient": result(self.quotient),
            "x": image(problem.boxed(problem.x), geometry.in_extent, read, tile.depth), "w": persistent.swizzled(w),
            "plane": sum_of_squares(problem, True), "tiles": programs, "tiles_h": tiles[1], "tiles_w": tiles[2],
            "tiles_o": blocks, "BOX": box, "BLOCK_O": tile.outputs, "BLOCK_K": tile.depth, "STAGES": tile.stages,
            "trace": None, "BOXES": tile.boxes, "RESIDENT": keeps_weights(tile, problem.request("forward").geometry),
            **problem.geometry_arguments("batch", "in_extent", "extent", "IN_CHANNELS", "OUT_CHANNELS", "KERNEL",
                                         "PADDING", "DILATION", "INDEX"),
        }  # fmt: skip
        grid = (min(problem.device.processors, programs),)
        problem.issue(Launch(persistent.forward_persistent, grid, arguments, tile.warps, tile.stages, True))

    def _gather(self, tile: Tile) -> None:
        problem, geometry = self.problem, self.geometry
        blocks = ceil(geometry.out_channels / tile.outputs)
        programs = ceil(problem.places / tile.places) * geometry.groups * blocks
        x_image, x_channel, x_pixel = problem.x.strides
        w, order = packed_weight(problem.w)
        arguments = {
            "x": problem.x.tensor, "w": w.tensor, "x_image": x_image, "x_channel": x_channel,
            **w.named("w", WEIGHT_AXES), "TILE": tile.places, "X_PIXEL": x_pixel, "W_ORDER": order,
            "Y_INNERMOST": self.y.strides.channel == 1, "UNROLLED": is_unrolled(tile, geometry),
        }  # fmt: skip
        self._product(kernels.forward_gather, tile, arguments, programs,
                      ceil(geometry.taps * geometry.in_channels / tile.depth))  # fmt: skip

    def _product(
        self, kernel: Any, tile: Tile, own: dict[str, Any], programs: int, steps: int,
        overlapped: bool = False,
    ) -> None:  # fmt: skip
        """The convolution's kernel and, where its sum is split, the epilogue over the shares."""
        problem, geometry = self.problem, self.geometry
        splits = problem.splits(tile, programs, steps)
        partial_u = partial_squares = None
        if splits > 1:
            partial_u = problem.empty(splits, problem.places, geometry.groups * geometry.out_channels)
            partial_squares = problem.empty(splits, geometry.groups * problem.places)
        arguments = {
            **own, **self._results(), "partial_u": partial_u, "partial_squares": partial_squares,
            "plane": sum_of_squares(problem, overlapped) if tile.squares == "plane" else None,
            "splits": splits, "BLOCK_O": tile.outputs, "BLOCK_K": tile.depth, "SQUARES": tile.squares,
            "PRECISION": problem.precision,
            **problem.geometry_arguments("batch", "in_extent", "extent", "IN_CHANNELS", "OUT_CHANNELS", "GROUPS",
                                         *CONSTANTS, "INDEX"),
        }  # fmt: skip
        problem.issue(Launch(kernel, (programs, splits), arguments, tile.warps, tile.stages, overlapped))
        if partial_u is not None:
            channels = geometry.groups * geometry.out_channels
            steps_of_u = {
                "u_split": problem.places * channels, "u_image": geometry.pixels * channels, "u_channel": 1,
                "u_pixel": channels,
            }  # fmt: skip
            self._epilogue(partial_u, partial_squares, steps_of_u, splits, plane=False)

    def _depthwise(self, tile: Tile) -> None:
        problem, geometry = self.problem, self.geometry
        blocks = ceil(geometry.groups * geometry.out_channels / tile.outputs)
        strides = problem.w.named("w", WEIGHT_AXES)
        arguments = {
            "x": problem.x.tensor, "w": problem.w.tensor, **self._results(), **self.y.named("y"),
            **problem.x.named("x"),
            "w_output": strides["w_output"], "w_tap": strides["w_tap"], "tiles_o": blocks, "TILE": tile.places,
            "BLOCK_O": tile.outputs,
            **problem.geometry_arguments("batch", "in_extent", "extent", "OUT_CHANNELS", "GROUPS", *CONSTANTS, "INDEX"),
        }  # fmt: skip
        grid = (ceil(problem.places / tile.places) * blocks,)
        problem.issue(Launch(kernels.forward_depthwise, grid, arguments, tile.warps, tile.stages))

    def _hybrid(self, tile: Tile) -> None:
        problem = self.problem
        (product,) = problem.call(
            functools.partial(convolution.forward, problem.spec), problem.x.tensor, problem.w.tensor
        )
        u = operand(product)
        self._epilogue(u.tensor, sum_of_squares(problem), {"u_split": 0, **u.named("u")}, 1, plane=True)

    def _epilogue(
        self, u: Tensor, squares: Tensor | None, strides: dict[str, int], splits: int, *, plane: bool
    ) -> None:
        problem, geometry = self.problem, self.geometry
        block = width(geometry.out_channels)
        blocks = ceil(geometry.out_channels / block)
        arguments = {
            "u": u, "squares": squares, **self._results(), **self.y.named("y"), **strides, "tiles_o": blocks,
            "splits": splits, "TILE": PLACES, "BLOCK_O": block, "PLANE": plane,
            **problem.geometry_arguments("batch", "in_extent", "extent", "OUT_CHANNELS", "GROUPS", *CONSTANTS, "INDEX"),
        }  # fmt: skip
        grid = (ceil(problem.places / PLACES) * geometry.groups * blocks,)
        problem.issue(Launch(epilogue.forward_epilogue, grid, arguments))


def sum_of_squares(problem: Problem, overlapped: bool = False) -> Tensor:
    """The plane [N, groups, pixels] of squares summed over a group's channels. ``overlapped``: the next launch is."""
    geometry = problem.geometry
    plane = problem.empty(geometry.batch, geometry.groups, geometry.in_pixels)
    places, block = pass_tile(geometry.in_channels, problem.x.strides.channel == 1, problem.dtype.itemsize)
    arguments = {
        "x": problem.x.tensor, "plane": plane, "pixels": geometry.in_pixels, **problem.x.named("x"), "TILE": places,
        "BLOCK": block, "OVERLAPPED": overlapped,
        **problem.geometry_arguments("batch", "IN_CHANNELS", "GROUPS", "INDEX"),
    }  # fmt: skip
    grid = (ceil(problem.in_places / places) * geometry.groups,)
    problem.issue(Launch(epilogue.sum_of_squares, grid, arguments))
    return plane
