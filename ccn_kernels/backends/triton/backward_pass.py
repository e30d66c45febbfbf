"""The backward pass: the prologue over the incoming gradient, then the chosen kernels of dgrad and wgrad."""

from __future__ import annotations

import functools
from collections.abc import Callable
from math import ceil
from typing import Any

import torch
from torch import Tensor

from . import convolution, epilogue
from . import dgrad as dgrad_kernels
from . import wgrad as wgrad_kernels
from .geometry import ONES, is_linear, next_power_of_two
from .launch import (
    CONSTANTS,
    PLACES,
    WEIGHT_AXES,
    Launch,
    Operand,
    Problem,
    channels_innermost,
    image_descriptor,
    operand,
    pass_tile,
    place_descriptor,
    tiles_of,
    weight_descriptor,
    width,
)
from .tiles import Tile

TOP = 2.0**14  # what the largest |e| in fp16 is scaled to: sums of it are fp32
ELEMENTS, WARPS = 4096, 16  # that a program of a reduction adds at a time: what is under way hides what loads take
FEW = 16  # programs of such a reduction on each processor: more of them need no more under way
PROGRAMS = 4  # of the prologue on each processor: every one leaves a row of sums


class Backward:
    """One backward pass; ``run`` returns the gradients of input, weight, alpha and bias, empty if not asked for."""

    def __init__(
        self,
        problem: Problem,
        grad: Tensor,
        bias: Tensor | None,
        alpha: Tensor,
        output: Tensor | None,
        quotient: Tensor | None,
        norm: Tensor,
        mask: list[bool],
    ) -> None:
        self.problem, self.geometry, self.alpha, self.norm = problem, problem.geometry, alpha, norm.contiguous()
        self.bias = bias if bias is None else bias.contiguous()
        self.needs_input, self.needs_weight, self.needs_alpha, self.needs_bias = mask
        if output is not None and quotient is not None and quotient.stride() != output.stride():
            quotient = torch.empty_like(output).copy_(quotient)
        alpha_alone = self.needs_alpha and not self.needs_weight
        if quotient is None and (alpha_alone or (self.needs_input and output is None)):
            raise RuntimeError("quotient must be given for the gradients that output_mask asks for")
        saved = output if output is not None else quotient
        self.saved = None if saved is None else operand(saved)
        if self.saved is not None and self.saved.tensor is not saved:  # copied: both alike
            output = None if output is None else self.saved.tensor
            quotient = None if quotient is None else operand(quotient).tensor
        self.y, self.quotient, self.grad = output, quotient, operand(grad)
        problem.reach = max(problem.reach, self.grad.reach)
        x = problem.x.tensor

        def result(asked: bool, make: Callable[[], Tensor], dtype: torch.dtype = problem.dtype) -> Tensor:
            """An operator's outputs must not share memory, not even where there is none."""
            return problem.own(make() if asked else x.new_empty(0, dtype=dtype))

        self.d_input = result(self.needs_input, lambda: torch.empty_like(x, memory_format=problem.format))
        self.d_weight = result(self.needs_weight, lambda: torch.empty_like(problem.weight))
        self.d_alpha = result(self.needs_alpha, lambda: x.new_empty((), dtype=alpha.dtype), alpha.dtype)
        self.d_bias = result(self.needs_bias, lambda: x.new_empty(problem.w.tensor.shape[0]))

    def run(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self.grad.tensor.numel() == 0 or self.problem.w.tensor.numel() == 0:
            # other tensors than those that launches write: a replay would find them unwritten
            return tuple(map(torch.zeros_like, self._results()))  # type: ignore[return-value]
        e, q, scale = self._prologue()
        if e is not None:
            self._convolutions(e, q, scale)
        return self._results()

    def _results(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.d_input, self.d_weight, self.d_alpha, self.d_bias

    def _tiles(self) -> tuple[Tile | None, Tile | None]:
        return (
            self.problem.tile("dgrad") if self.needs_input else None,
            self.problem.tile("wgrad") if self.needs_weight else None,
        )

    def _prologue(self) -> tuple[Operand | None, Tensor | None, Tensor | None]:
        """e, q and the scale of e: what the convolutions and the input's epilogue take."""
        problem, geometry = self.problem, self.geometry
        wanted = self.needs_input or self.needs_weight
        tile, block = pass_tile(geometry.out_channels, self.grad.strides.channel == 1, problem.dtype.itemsize)
        tiles = ceil(problem.places / tile)
        each = ceil(tiles / (PROGRAMS * problem.device.processors)) if block >= geometry.out_channels else 1
        common = {
            "g": self.grad.tensor, "y": self.y, "norm": self.norm, "delta": problem.spec.delta,
            "pixels": geometry.pixels, **self.grad.named("g"), **(self.saved or self.grad).named("y"), "TILE": tile,
            "BLOCK_O": block, **problem.geometry_arguments("batch", "OUT_CHANNELS", "GROUPS", "INDEX"),
        }  # fmt: skip
        scale = self._scale(common, tiles * geometry.groups) if wanted and problem.dtype == torch.float16 else None
        e = self._errors() if wanted else None
        q = problem.empty(geometry.batch, geometry.groups, geometry.pixels) if self.needs_input else None
        shares, outputs = ceil(tiles / each), geometry.groups * geometry.out_channels
        alphas = problem.empty(shares * geometry.groups) if self.needs_alpha and not self.needs_weight else None
        biases = problem.empty(shares, outputs) if self.needs_bias else None
        quotient = self.quotient if q is not None or alphas is not None else None
        arguments = {
            **common, "quotient": quotient, "bias": self.bias, "alpha": self.alpha, "scale": scale, "each": each,
            "e": None if e is None else e.tensor, "q": q, "dbias": biases, "dalpha": alphas,
            **(e or self.grad).named("e"),
        }  # fmt: skip
        problem.issue(Launch(epilogue.backward_prologue, (shares * geometry.groups,), arguments, warps=8))
        if biases is not None and not self.needs_weight:
            self._sum(biases, self.d_bias)
        self.biases = biases if self.needs_weight else None  # added up beside the weight's gradient
        if alphas is not None:
            self._sum(alphas, self.d_alpha)
        return e, q, scale

    def _sum(self, shares: Tensor, result: Tensor) -> None:
        """Adds shares [rows, columns] into the result [columns]."""
        count, columns = result.numel(), columns_of(result)
        arguments = {
            "shares": shares, "result": result, "rows": shares.numel() // count, "columns": count,
            "ROWS": ELEMENTS // columns, "COLUMNS": columns,
        }  # fmt: skip
        self.problem.issue(Launch(epilogue.sum_shares, (ceil(count / columns),), arguments, WARPS))

    def _scale(self, common: dict[str, Any], programs: int) -> Tensor:
        largest, scale = self.problem.empty(programs), self.problem.empty()
        self.problem.issue(Launch(epilogue.largest_error, (programs,), {**common, "largest": largest}))
        dgrad, _ = self._tiles()
        limit = None
        if dgrad is not None and dgrad.kernel == "hybrid":
            (limit,) = self.problem.call(functools.partial(_limit, self.geometry.groups), self.problem.weight)
        arguments = {
            "largest": largest, "scale": scale, "limit": limit, "count": programs,
            "TOP": TOP, "BLOCK": ELEMENTS,
        }  # fmt: skip
        self.problem.issue(Launch(epilogue.error_scale, (1,), arguments))
        return scale

    def _errors(self) -> Operand:
        """Uninitialised e, laid out as the kernels that will read it need it."""
        problem = self.problem
        if any(tile is not None and tile.kernel == "descriptor" for tile in self._tiles()):
            return operand(problem.own(channels_innermost(self.grad.tensor, problem.dtype)))
        device, format = self.alpha.device, problem.format
        return operand(
            problem.own(torch.empty(problem.shape, dtype=problem.dtype, device=device, memory_format=format))
        )

    def _convolutions(self, e: Operand, q: Tensor | None, scale: Tensor | None) -> None:
        """dgrad and wgrad, each by its own tile; where both are cuDNN's, in one call."""
        dgrad, wgrad = self._tiles()
        conv, dw = self._cudnns(e, *(tile is not None and tile.kernel == "hybrid" for tile in (dgrad, wgrad)))
        if conv is not None and q is not None:
            whole = operand(conv)
            self._input_epilogue(whole.tensor, {"conv_split": 0, **whole.named("conv")}, 1, q, scale)
        elif dgrad is not None and q is not None:
            getattr(self, f"_dgrad_{dgrad.kernel}")(dgrad, e, q, scale)
        if dw is not None:
            whole = operand(dw)
            self._reduce(whole.tensor, {"partial_split": 0, **whole.named("partial", WEIGHT_AXES)}, 1, scale)
        elif wgrad is not None:
            shares, splits = getattr(self, f"_wgrad_{wgrad.kernel}")(wgrad, e)
            self._reduce(shares, self._share_strides(), splits, scale)

    def _cudnns(self, e: Operand, dgrad: bool, wgrad: bool) -> tuple[Tensor | None, Tensor | None]:
        if not (dgrad or wgrad):
            return None, None
        function = functools.partial(convolution.backward, self.problem.spec, (dgrad, wgrad))
        found = self.problem.call(function, e.tensor, self.problem.x.tensor, self.problem.w.tensor)
        return found[0] if dgrad else None, found[-1] if wgrad else None

    def _gradient_arguments(self, q: Tensor, scale: Tensor | None) -> dict[str, Any]:
        d_input = operand(self.d_input)
        return {
            "x": self.problem.x.tensor, "q": q, "dx": d_input.tensor, "alpha": self.alpha, "scale": scale,
            **self.problem.x.named("x"), **d_input.named("dx"),
        }  # fmt: skip

    def _dgrad_descriptor(self, tile: Tile, e: Operand, q: Tensor, scale: Tensor | None) -> None:
        problem, geometry = self.problem, self.geometry
        box = problem.box(tile, geometry.in_extent)
        tiles = tiles_of(geometry.batch, geometry.in_extent, box)
        blocks = ceil(geometry.in_channels / tile.outputs)
        repacked = problem.dtype == torch.float32
        if repacked:
            (exchanged,) = problem.call(functools.partial(convolution.transposed, geometry.groups), problem.w.tensor)
            w = weight_descriptor(operand(exchanged), geometry.taps, (tile.outputs, tile.depth))
        else:
            w = weight_descriptor(problem.boxed(problem.w, packed=True), geometry.taps, (tile.depth, tile.outputs))
        programs = tiles[0] * tiles[1] * tiles[2] * geometry.groups * blocks
        splits = problem.splits(tile, programs, geometry.taps * ceil(geometry.out_channels / tile.depth))
        channels = geometry.groups * geometry.in_channels
        partial = problem.empty(splits, problem.in_places, channels) if splits > 1 else None
        arguments = {
            "e": image_descriptor(e, geometry.extent, ONES, box, tile.depth), "w": w, "partial": partial,
            **self._gradient_arguments(q, scale), "tiles_h": tiles[1], "tiles_w": tiles[2], "tiles_c": blocks,
            "splits": splits, "BOX": box, "BLOCK_C": tile.outputs, "BLOCK_K": tile.depth,
            "REPACKED": repacked, "PRECISION": problem.precision,
            **problem.geometry_arguments("batch", "in_extent", "extent", "IN_CHANNELS", "OUT_CHANNELS", "GROUPS",
                                         "KERNEL", "PADDING", "DILATION", "INDEX"),
        }  # fmt: skip
        problem.issue(Launch(dgrad_kernels.dgrad_descriptor, (programs, splits), arguments, tile.warps, tile.stages))
        if partial is not None:
            strides = {
                "conv_split": problem.in_places * channels, "conv_image": geometry.in_pixels * channels,
                "conv_channel": 1, "conv_pixel": channels,
            }  # fmt: skip
            self._input_epilogue(partial, strides, splits, q, scale)

    def _dgrad_gather(self, tile: Tile, e: Operand, q: Tensor, scale: Tensor | None) -> None:
        problem, geometry = self.problem, self.geometry
        blocks = ceil(geometry.in_channels / tile.outputs)
        arguments = {
            "e": e.tensor, "w": problem.w.tensor, **e.named("e"), **problem.w.named("w", WEIGHT_AXES),
            **self._gradient_arguments(q, scale), "tiles_c": blocks, "TILE": tile.places, "BLOCK_C": tile.outputs,
            "BLOCK_K": tile.depth, "PRECISION": problem.precision,
            **problem.geometry_arguments("batch", "in_extent", "extent", "IN_CHANNELS", "OUT_CHANNELS", "GROUPS",
                                         *CONSTANTS, "INDEX"),
        }  # fmt: skip
        grid = (ceil(problem.in_places / tile.places) * geometry.groups * blocks,)
        problem.issue(Launch(dgrad_kernels.dgrad_gather, grid, arguments, tile.warps, tile.stages))

    def _input_epilogue(
        self, conv: Tensor, strides: dict[str, int], splits: int, q: Tensor, scale: Tensor | None
    ) -> None:
        problem, geometry = self.problem, self.geometry
        block = width(geometry.in_channels)
        blocks = ceil(geometry.in_channels / block)
        arguments = {
            "conv": conv, **strides, **self._gradient_arguments(q, scale), "tiles_c": blocks, "splits": splits,
            "TILE": PLACES, "BLOCK_C": block,
            **problem.geometry_arguments("batch", "in_extent", "extent", "IN_CHANNELS", "GROUPS", *CONSTANTS, "INDEX"),
        }  # fmt: skip
        grid = (ceil(problem.in_places / PLACES) * geometry.groups * blocks,)
        problem.issue(Launch(epilogue.input_epilogue, grid, arguments))

    def _shares(self, splits: int) -> Tensor:
        geometry = self.geometry
        return self.problem.empty(splits, geometry.groups * geometry.out_channels, geometry.taps, geometry.in_channels)

    def _share_strides(self) -> dict[str, int]:
        geometry = self.geometry
        row = geometry.taps * geometry.in_channels
        return {
            "partial_split": geometry.groups * geometry.out_channels * row, "partial_output": row,
            "partial_channel": 1, "partial_tap": geometry.in_channels,
        }  # fmt: skip

    def _wgrad_descriptor(self, tile: Tile, e: Operand) -> tuple[Tensor, int]:
        problem, geometry = self.problem, self.geometry
        box = problem.box(tile, geometry.extent)
        counts = tiles_of(geometry.batch, geometry.extent, box)
        tiles = counts[0] * counts[1] * counts[2]
        tiles_o, tiles_c = ceil(geometry.out_channels / tile.outputs), ceil(geometry.in_channels / tile.depth)
        programs = tiles_o * tiles_c * geometry.taps * geometry.groups
        splits = problem.splits(tile, programs, tiles)
        partial = self._shares(splits)
        linear = is_linear(box, geometry.extent)
        x = problem.boxed(problem.x, packed=not geometry.is_plain)
        arguments = {
            "e": place_descriptor(e, problem.places, (tile.places, tile.outputs)) if linear
            else image_descriptor(e, geometry.extent, ONES, box, tile.outputs),
            "x": image_descriptor(x, geometry.in_extent, geometry.stride, box, tile.depth),
            "partial": partial, "tiles": tiles, "tiles_h": counts[1], "tiles_w": counts[2], "tiles_o": tiles_o,
            "tiles_c": tiles_c, "splits": splits, "LINEAR": linear, "BOX": box, "BLOCK_O": tile.outputs,
            "BLOCK_C": tile.depth, "PRECISION": problem.precision,
            **problem.geometry_arguments("IN_CHANNELS", "OUT_CHANNELS", "GROUPS", *CONSTANTS),
        }  # fmt: skip
        problem.issue(Launch(wgrad_kernels.wgrad_descriptor, (programs, splits), arguments, tile.warps, tile.stages))
        return partial, splits

    def _wgrad_gather(self, tile: Tile, e: Operand) -> tuple[Tensor, int]:
        problem, geometry = self.problem, self.geometry
        tiles_o = ceil(geometry.out_channels / tile.outputs)
        tiles_k = ceil(geometry.in_channels * geometry.taps / tile.depth)
        programs = tiles_o * tiles_k * geometry.groups
        splits = problem.splits(tile, programs, ceil(problem.places / tile.places))
        partial = self._shares(splits)
        x_image, x_channel, x_pixel = problem.x.strides
        arguments = {
            "e": e.tensor, "x": problem.x.tensor, "partial": partial, "x_image": x_image, "x_channel": x_channel,
            "tiles_o": tiles_o, "tiles_k": tiles_k, "splits": splits, "TILE": tile.places, "BLOCK_O": tile.outputs,
            "BLOCK_K": tile.depth, "X_PIXEL": x_pixel, "E_INNERMOST": e.strides.channel == 1,
            "PRECISION": problem.precision,
            **problem.geometry_arguments("batch", "in_extent", "extent", "IN_CHANNELS", "OUT_CHANNELS", "GROUPS",
                                         *CONSTANTS, "INDEX"),
        }  # fmt: skip
        problem.issue(Launch(wgrad_kernels.wgrad_gather, (programs, splits), arguments, tile.warps, tile.stages))
        return partial, splits

    def _reduce(self, partial: Tensor, strides: dict[str, int], splits: int, scale: Tensor | None) -> None:
        problem, geometry = self.problem, self.geometry
        count = self.d_weight.numel()
        block = max(32, min(256, next_power_of_two(count // (2 * problem.device.processors))))
        programs = ceil(count / block)
        few = strides["partial_split"] > 0 and programs < FEW * problem.device.processors
        elements, warps = (ELEMENTS, WARPS) if few else (ELEMENTS // 4, WARPS // 4)
        alphas = problem.empty(programs) if self.needs_alpha else None
        d_weight = operand(self.d_weight)
        biases, outputs, columns = self.biases, problem.w.tensor.shape[0], columns_of(self.d_bias)
        arguments = {
            "partial": partial, "w": problem.w.tensor, "dw": d_weight.tensor, "dalpha": alphas, "alpha": self.alpha,
            "scale": scale, "count": count, "splits": splits, **strides, **problem.w.named("w", WEIGHT_AXES),
            **d_weight.named("dw", WEIGHT_AXES), "TAPS": geometry.taps, "BLOCK": block,
            "ROWS": elements // block if strides["partial_split"] else 1, "biases": biases,
            "dbias": None if biases is None else self.d_bias, "biases_rows": 0 if biases is None else biases.shape[0],
            "biases_columns": outputs, "BIAS_ROWS": elements // columns, "BIAS_COLUMNS": columns,
            **problem.geometry_arguments("IN_CHANNELS"),
        }  # fmt: skip
        programs += 0 if biases is None else ceil(outputs / columns)
        problem.issue(Launch(wgrad_kernels.wgrad_reduce, (programs,), arguments, warps))
        if d_weight.tensor is not self.d_weight:
            self.d_weight.copy_(d_weight.tensor)
        if alphas is not None:
            self._sum(alphas, self.d_alpha)


def columns_of(result: Tensor) -> int:
    """How many of the result's columns a program adds up."""
    return min(16, next_power_of_two(result.numel()))


def _limit(groups: int, weight: Tensor) -> tuple[Tensor]:
    """The largest |e| whose sums with an input channel's weights, as cuDNN narrows them, are fp16 at any sign."""
    by_group = weight.float().abs().unflatten(0, (groups, -1))  # [groups, O / groups, C / groups, *kernel]
    sums = by_group.sum((1, *range(3, by_group.dim())))
    return (torch.finfo(torch.float16).max / sums.amax(),)
