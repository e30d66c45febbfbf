"""Calls that take the Triton backend through each of its kernels, by tiles small enough for little problems."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ccn_kernels.backends import triton as backend
from ccn_kernels.backends.triton.backward_pass import Backward
from ccn_kernels.backends.triton.forward_pass import Forward
from ccn_kernels.backends.triton.launch import Problem
from ccn_kernels.backends.triton.tiles import HYBRID, Tile
from ccn_kernels.bench.case import Named

from .sweep import GRADIENTS, Call

INTERPRETED = backend.interpreting()
NARROW = torch.float16 if INTERPRETED else torch.bfloat16  # the interpreter multiplies bfloat16 wrongly
HYBRID_DTYPE = torch.float32 if INTERPRETED else torch.bfloat16  # whose product must not overflow

BOXES = Tile("descriptor", 64, 16, 16, 4, 2)
WIDE = Tile("descriptor", 128, 128, 64, 8, 4)
POINTERS = Tile("gather", 32, 16, 16, 4, 2)
ONE_STEP = Tile("gather", 32, 16, 64, 4, 2, squares="loop")


def of_tiles(
    name: str, forward: Tile, dgrad: Tile = HYBRID, wgrad: Tile = HYBRID, *shape, dtype=NARROW, **geometry
) -> Call:
    tiles = {"forward": forward, "dgrad": dgrad, "wgrad": wgrad}
    return Call(name, *shape, dtype=dtype, tiles=tiles, **geometry)


def with_squares(squares: str) -> Tile:
    return dataclasses.replace(BOXES, squares=squares)


def split(tile: Tile) -> Tile:
    return dataclasses.replace(tile, splits=3)


CALLS = (
    *(of_tiles(f"descriptor, {way}", with_squares(way), BOXES, BOXES) for way in ("rows", "images", "plane")),
    of_tiles("descriptor, split", split(BOXES), BOXES, split(BOXES)),
    of_tiles("descriptor, split, images", split(with_squares("images")), BOXES, split(BOXES), relu=True),
    of_tiles("descriptor, strided", BOXES, HYBRID, BOXES, (32, 24), (8, 6), stride=2),
    of_tiles("descriptor, groups", BOXES, BOXES, BOXES, (32, 64), groups=2),
    of_tiles("descriptor, dilated", BOXES, BOXES, BOXES, dilation=2),
    of_tiles("descriptor, 8 warps", WIDE, WIDE, dataclasses.replace(WIDE, places=64), (128, 128), (8, 8), 4),
    of_tiles("descriptor, fp16", BOXES, BOXES, BOXES, dtype=torch.float16),
    of_tiles("gather", POINTERS, POINTERS, POINTERS, (5, 7)),
    of_tiles("gather, split", split(POINTERS), POINTERS, split(POINTERS), (16, 24), stride=2, groups=2),
    of_tiles("gather, loop", ONE_STEP, POINTERS, POINTERS, (5, 7), relu=True),
    of_tiles("depthwise", Tile("depthwise", 64, 64, warps=4, stages=1), POINTERS, POINTERS, (12, 24), groups=12),
    of_tiles("hybrid", HYBRID, dtype=HYBRID_DTYPE),
    of_tiles("hybrid, relu", HYBRID, stride=2, relu=True, dtype=HYBRID_DTYPE),
)


def compute(call: Call, operands: Named, grad: Tensor) -> Named:
    x, weight, bias, alpha = operands.values()
    device = backend.device(x.device.index)
    problem = Problem(x, weight, call.spec, device, tiles=call.tiles)
    output, quotient, norm = Forward(problem, bias, alpha, not call.relu).run()
    saved = (output, None) if call.relu else (None, quotient)
    problem = Problem(x, weight, call.spec, device, tiles=call.tiles)
    gradients = Backward(problem, grad, bias, alpha, *saved, norm, [True] * 4).run()
    return {"output": output, **dict(zip(GRADIENTS, gradients, strict=True))}
