"""Which tiles can run a pass, and why the others cannot."""

from __future__ import annotations

import functools
import importlib.metadata
import math

from .geometry import Axes, Geometry, box_of, part_of, squares_of_centre
from .tiles import BOXED_SQUARES, PERSISTENT_TILES, UNTRIED_TILES, Device, Request, Tile

LEAST = 16  # of each size of a product
SHARED_LIMITS = {80: 166912, 90: 232448, 100: 232448, 103: 232448}  # bytes a block, by capability
LEAST_SHARED = 101376  # where the above says nothing
NEIGHBOURS = 8  # channels that a gather loads at once, where their number and layout allow it
LEAST_STEPS = 4  # of a share of a sum: fewer would not cover the cost of adding it up
GLUON = ("3.6", "3.9")  # Triton's versions whose Gluon is known to compile those
TALL_GLUON = "3.6"  # of tall tiles: 3.9 lets no view of shared memory reach beyond the one that it is made of
BARRIER_BYTES = 512  # of such a tile's shared memory, at most
SWIZZLED_ROWS = 8  # of 128 bytes: what the swizzle of shared memory repeats by


def can_run(tile: Tile, request: Request, device: Device) -> str | None:
    """Why a tile cannot run a request; None if it can."""
    if tile.kernel not in _REASONS:
        return f"kernel must be one of {', '.join(_REASONS)}, got {tile.kernel!r}"
    return _REASONS[tile.kernel](tile, request, device) or _size_reason(tile)


def _size_reason(tile: Tile) -> str | None:
    if any(size < LEAST or size & (size - 1) for size in (tile.places, tile.outputs, tile.depth)):
        return f"places, outputs and depth must be powers of two, no fewer than {LEAST}"
    return None


def _hybrid_reason(tile: Tile, request: Request, device: Device) -> str | None:
    if request.dtype != "float16":
        return None
    return {  # of inputs of 1e-6 little would be left by wgrad, of 1e4 too much
        "forward": "the product overflows fp16 before it is divided",
        "wgrad": "the sum is narrowed to fp16 before alpha's gradient is made of it",
    }.get(request.kind)


def _depthwise_reason(tile: Tile, request: Request, device: Device) -> str | None:
    fits = request.kind == "forward" and request.geometry.in_channels == 1
    return None if fits else "it takes the forward pass with one input channel a group"


def _gather_reason(tile: Tile, request: Request, device: Device) -> str | None:
    if tile.squares not in ("loop", "plane"):
        return "it finds squares in the loop or in a plane"
    loop = steps_of(tile, request.geometry) > 1 and not is_unrolled(tile, request.geometry)
    if request.kind == "forward" and tile.squares == "loop" and loop and _loses_boxes(device):
        return "registers must not read what asynchronous products read: it finds squares in a plane"
    return None


def _loses_boxes(device: Device) -> bool:
    """Whether Triton (3.6) fills shared memory anew too early where a loop reads it into registers as well."""
    return device.capability >= 90 and not device.is_interpreter


def steps_of(tile: Tile, geometry: Geometry) -> int:
    """Of a gather's sum."""
    return math.ceil(geometry.in_channels * geometry.taps / tile.depth)


def is_unrolled(tile: Tile, geometry: Geometry) -> bool:
    """Whether a forward gather has no loop: no neighbours to load at once, and too few steps to be shared out."""
    return geometry.in_channels % NEIGHBOURS != 0 and steps_of(tile, geometry) < 2 * LEAST_STEPS


def _descriptor_reason(tile: Tile, request: Request, device: Device) -> str | None:
    geometry = request.geometry
    if device.capability < 90:
        return "descriptors need compute capability 9.0"
    if not request.boxable or not geometry.is_flat:
        return "descriptors need channels in multiples of 16 bytes, and at most two spatial axes"
    if request.kind == "dgrad" and not geometry.is_plain:
        return "dgrad by descriptors takes stride 1"
    if request.kind == "wgrad" and request.dtype == "float32":
        return "TF32 products want the summed axis innermost, and here it is not"
    if request.kind == "forward" and tile.squares not in BOXED_SQUARES:
        return f"squares must be one of {', '.join(BOXED_SQUARES)}, got {tile.squares!r}"
    if tile.squares in ("rows", "images") and not squares_of_centre(geometry, tile.squares):
        return "the centre's taps do not hold every patch's squares"
    if box_of(tile.places, geometry, geometry.extent, tile.squares) is None:
        return f"{tile.places} places do not hold whole {tile.squares}"
    if shared_bytes(tile, request) > SHARED_LIMITS.get(device.capability, LEAST_SHARED):
        return "it needs more shared memory than a block may have"
    whole = {"forward": (geometry.in_channels, tile.depth), "dgrad": (geometry.out_channels, tile.depth)}
    channels, depth = whole.get(request.kind, (0, 1))
    if (geometry.groups > 1 or not geometry.is_plain) and channels % depth:
        return "under groups or strides a step of the loop must not cross their borders"
    if request.kind == "wgrad" and not geometry.is_plain and geometry.in_channels % tile.depth:
        return "under strides a tile of channels must not cross the pixel's border"
    return None


def _persistent_reason(tile: Tile, request: Request, device: Device) -> str | None:
    geometry = request.geometry
    if device.capability != 90 or device.is_interpreter:
        return "it is written for compute capability 9.0, and Gluon has no interpreter"
    if triton_release() not in GLUON:
        return f"its Gluon is known to compile under Triton {' and '.join(GLUON)}, found {triton_release() or 'none'}"
    if request.kind != "forward" or request.dtype not in ("bfloat16", "float16"):
        return "it takes the forward pass in bfloat16 and float16"
    if geometry.groups > 1 or not geometry.is_plain or not geometry.is_flat:
        return "it takes one group, stride 1 and at most two spatial axes"
    if tile not in PERSISTENT_TILES + UNTRIED_TILES:
        return f"it is one of {', '.join(map(str, PERSISTENT_TILES + UNTRIED_TILES))}"
    if not request.writable or geometry.in_channels % tile.depth:
        return f"it takes channels innermost, inputs in multiples of {tile.depth} and outputs of 16 bytes"
    if geometry.taps * geometry.in_channels <= tile.depth:
        return "it needs two steps at least"
    return _tall_reason(tile, geometry) if tile.boxes else None


def _tall_reason(tile: Tile, geometry: Geometry) -> str | None:
    if triton_release() != TALL_GLUON:
        return f"its boxes' parts overlap, which Triton {TALL_GLUON} alone allows, found {triton_release()}"
    images, rows, columns = _box(tile, geometry)
    if geometry.kernel[1] == 1 or rows == 1:
        return "taps share boxes of several rows under kernels of several rows"
    if geometry.in_channels // tile.depth * geometry.kernel[2] == 1:
        return "it needs two boxes of x at least"
    if images * columns % SWIZZLED_ROWS:
        return f"a row of a box must hold {SWIZZLED_ROWS} places"
    return None if _persistent_bytes(tile, geometry, False) <= SHARED_LIMITS[90] else "it needs too much shared memory"


@functools.cache
def triton_release() -> str | None:
    """The version of Triton that is installed, as far as GLUON tells versions apart."""
    try:
        return ".".join(importlib.metadata.version("triton").split(".")[:2])
    except importlib.metadata.PackageNotFoundError:
        return None


_REASONS = {
    "descriptor": _descriptor_reason,
    "persistent": _persistent_reason,
    "gather": _gather_reason,
    "depthwise": _depthwise_reason,
    "hybrid": _hybrid_reason,
}


def keeps_weights(tile: Tile, geometry: Geometry) -> bool:
    """Whether a persistent tile's shared memory holds all weights, beside what its stages and its ends take."""
    return geometry.out_channels <= tile.outputs and _persistent_bytes(tile, geometry, True) <= SHARED_LIMITS[90]


def _persistent_bytes(tile: Tile, geometry: Geometry, keeps: bool) -> int:
    """Shared memory; ``keeps``: all weights, instead of one block of them a stage."""
    x = tile.stages * tile.places
    if tile.boxes:
        images, rows, columns = _box(tile, geometry)
        x = tile.boxes * (rows + (geometry.kernel[1] - 1) * geometry.dilation[1]) * images * columns
    blocks = geometry.taps * geometry.in_channels // tile.depth if keeps else tile.stages
    buffers = 4 * tile.places * tile.outputs // tile.copies
    divisors = 2 * 4 * tile.places
    return 2 * (tile.depth * (x + blocks * tile.outputs) + buffers) + divisors + BARRIER_BYTES


def _box(tile: Tile, geometry: Geometry) -> Axes:
    box = box_of(tile.places, geometry, geometry.extent, tile.squares, tall=tile.boxes > 0)
    assert box is not None  # a plane of squares lets boxes be as they like
    return box


def rows_first(box: Axes) -> Axes:
    """[rows, images, columns] of [images, rows, columns]: the order of a tall tile's places."""
    return box[1], box[0], box[2]


def written_part(tile: Tile, box: Axes) -> tuple[Axes, int]:
    """The box, and the outputs, of what one of these copies writes."""
    if tile.places > tile.outputs:
        return part_of(box, tile.copies), tile.outputs
    return box, tile.outputs // tile.copies


def shared_bytes(tile: Tile, request: Request) -> int:
    """What the stages of the loop hold."""
    size = 4 if request.dtype == "float32" else 2
    operands = (tile.places + tile.outputs) * tile.depth
    if request.kind == "wgrad":
        operands = (tile.outputs + tile.depth) * tile.places
    return tile.stages * operands * size


def resident(tile: Tile) -> int:
    """How many programs of a wgrad one processor holds at a time: as many as its registers have accumulators for."""
    return max(1, min(4, 2 * 128 * 128 // (tile.outputs * tile.depth)))
