"""Which kernel, and which tile, computes a call: a table measured on that GPU if there is one, else a heuristic.

Nothing is measured here: a choice is a function of the call and of files. `ccn tune` writes such files.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

from .geometry import Axes, Geometry, box_of, is_linear, next_power_of_two, part_of, squares_of_centre

CONFIGS = Path(__file__).parent / "configs"
USER_TABLE = "CCN_TUNED"  # environment variable: a file of `ccn tune`, before the package's own
SQUARES = ("loop", "rows", "images", "plane")
BOXED_SQUARES = ("images", "rows", "plane")  # of descriptors
LEAST = 16  # of each size of a product
SHARED_LIMITS = {80: 166912, 90: 232448, 100: 232448, 103: 232448}  # bytes a block, by capability
LEAST_SHARED = 101376  # where the above says nothing
NEIGHBOURS = 8  # channels that a gather loads at once, where their number and layout allow it
LEAST_STEPS = 4  # of a share of a sum: fewer would not cover the cost of adding it up
TENSOR_CORES = 80  # the first capability whose tensor cores Triton uses
_BATCHES = (1, 4, 16, 64, 128, 256)


@dataclasses.dataclass(frozen=True)
class Tile:
    """One configuration. A product is places x outputs, summed over depth (wgrad: outputs x depth, over places).

    Attributes:
        kernel: "descriptor", "persistent", "gather", "depthwise", or "hybrid" (cuDNN's product between our passes).
        splits: shares of the sum, added in a fixed order; 0 (for wgrad): as many as fill the GPU.
        warps: of a persistent program, those of one consumer (see persistent.py).
        squares: where a forward pass finds the patch's norm (see fprop.py).
    """

    kernel: str
    places: int = 128
    outputs: int = 128
    depth: int = 64
    warps: int = 8
    stages: int = 3
    splits: int = 1
    squares: str = "plane"


HYBRID = Tile("hybrid")
PERSISTENT_TILES = (Tile("persistent", 256, 64, 64, warps=4, stages=4), Tile("persistent", 128, 128, 64, 4, 5))
GLUON = ("3.6", "3.9")  # Triton's versions whose Gluon is known to compile those
LEAST_WAVES = 2.9  # of persistent tiles: with fewer, they gain nothing on an H200 (benchmarks/PERFORMANCE.md)
SMALL_SHARED = 4096  # bytes that such a tile takes besides boxes, at most


class Device(NamedTuple):
    """What the choice depends on. The interpreter counts as a Hopper GPU of a few processors."""

    name: str
    capability: int  # 90 for 9.0
    processors: int
    is_interpreter: bool = False

    @property
    def overlaps(self) -> bool:
        """Whether a launch can start before the one that it depends on is done (programmatic dependent launch)."""
        return self.capability >= 90 and not self.is_interpreter


class Request(NamedTuple):
    """A pass over a call: hashable, and the same for all batches of a class (see batch_class)."""

    kind: str  # "forward", "dgrad", "wgrad"
    geometry: Geometry
    dtype: str  # "float32", "float16", "bfloat16"
    precision: str  # of fp32 products: "tf32" or "ieee"
    channels_last: bool
    boxable: bool  # whether descriptors can read the operand, perhaps after a copy to channels_last
    writable: bool  # whether a descriptor can write the output

    @property
    def key(self) -> str:
        """What tables call it; the batch is not part of it."""
        g = self.geometry
        axes = ["x".join(map(str, part)) for part in (g.in_extent, g.kernel, g.stride, g.padding, g.dilation)]
        shape = "{}->{} g{} @{} k{} s{} p{} d{}".format(g.in_channels, g.out_channels, g.groups, *axes)
        dtype = self.precision if self.dtype == "float32" else self.dtype
        return f"{dtype} {'channels_last' if self.channels_last else 'contiguous'} {shape}"


def request(
    kind: str, geometry: Geometry, dtype: str, precision: str, channels_last: bool, boxable: bool, writable: bool
) -> Request:
    classed = geometry._replace(batch=batch_class(geometry.batch))
    return Request(kind, classed, dtype, precision, channels_last, boxable, writable)


def batch_class(batch: int) -> int:
    """The batch that stands for all batches of its class: within a class, no kernel is compiled anew."""
    return next((most for most in _BATCHES if batch <= most), _BATCHES[-1])


@functools.lru_cache(maxsize=4096)
def choose(request: Request, device: Device) -> Tile:
    """The tile for a pass: measured on this GPU, or a heuristic's."""
    measured = table(device.name).get(request.kind, {}).get(request.key)
    if measured is not None and not can_run(measured, request, device):
        return measured
    return _HEURISTICS[request.kind](request, device)


@functools.cache
def table(device_name: str) -> dict[str, dict[str, Tile]]:
    """Tiles by kind and key: the package's table of this GPU, and a user's own over it."""
    merged: dict[str, dict[str, Tile]] = {kind: {} for kind in _HEURISTICS}
    own = os.environ.get(USER_TABLE)
    for path in (CONFIGS / file_name(device_name), *([Path(own)] if own else [])):
        if path.parent == CONFIGS and not path.exists():
            continue
        for entry in read(path, device_name):
            merged[entry["kind"]][entry["key"]] = entry["tile"]
    return merged


def file_name(device_name: str) -> str:
    return device_name.lower().replace(" ", "_") + ".json"


def read(path: Path, device_name: str) -> list[dict[str, Any]]:
    """A table's entries, with their tiles; none of a table measured on another GPU.

    Raises:
        ValueError: the file is not such a table.
    """
    try:
        content = json.loads(path.read_text())
        if content["device"] != device_name:
            return []
        entries = [{**entry, "tile": _tile(entry["tile"])} for entry in content["entries"]]
        if not all(entry["kind"] in _HEURISTICS and isinstance(entry["key"], str) for entry in entries):
            raise KeyError("kind, key")
    except (OSError, AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a table of tiles as `ccn tune` writes it: {error!r}") from error
    return entries


def _tile(content: dict[str, Any]) -> Tile:
    tile = Tile(**content)
    for field in dataclasses.fields(tile):
        value, expected = getattr(tile, field.name), type(getattr(HYBRID, field.name))
        if type(value) is not expected:
            raise TypeError(f"{field.name} must be of type {expected.__name__}, got {value!r}")
    return tile


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
    loop = _steps(tile, request.geometry) > 1 and not is_unrolled(tile, request.geometry)
    if request.kind == "forward" and tile.squares == "loop" and loop and _loses_boxes(device):
        return "registers must not read what asynchronous products read: it finds squares in a plane"
    return None


def _loses_boxes(device: Device) -> bool:
    """Whether Triton (3.6) fills shared memory anew too early where a loop reads it into registers as well."""
    return device.capability >= 90 and not device.is_interpreter


def _steps(tile: Tile, geometry: Geometry) -> int:
    """Of a gather's sum."""
    return math.ceil(geometry.in_channels * geometry.taps / tile.depth)


def is_unrolled(tile: Tile, geometry: Geometry) -> bool:
    """Whether a forward gather has no loop: no neighbours to load at once, and too few steps to be shared out."""
    return geometry.in_channels % NEIGHBOURS != 0 and _steps(tile, geometry) < 2 * LEAST_STEPS


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
    if _shared_bytes(tile, request) > SHARED_LIMITS.get(device.capability, LEAST_SHARED):
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
    if _triton() not in GLUON:
        return f"its Gluon is known to compile under Triton {' and '.join(GLUON)}, found {_triton() or 'none'}"
    if request.kind != "forward" or request.dtype not in ("bfloat16", "float16"):
        return "it takes the forward pass in bfloat16 and float16"
    if geometry.groups > 1 or not geometry.is_plain or not geometry.is_flat:
        return "it takes one group, stride 1 and at most two spatial axes"
    if tile not in PERSISTENT_TILES:
        return f"it is one of {', '.join(map(str, PERSISTENT_TILES))}"
    if not request.writable or geometry.in_channels % tile.depth:
        return f"it takes channels innermost, inputs in multiples of {tile.depth} and outputs of 16 bytes"
    return "it needs two steps at least" if geometry.taps * geometry.in_channels <= tile.depth else None


@functools.cache
def _triton() -> str | None:
    """The version of Triton that is installed, as far as GLUON tells versions apart."""
    try:
        return ".".join(importlib.metadata.version("triton").split(".")[:2])
    except importlib.metadata.PackageNotFoundError:
        return None


def keeps_weights(tile: Tile, geometry: Geometry) -> bool:
    """Whether a persistent tile's shared memory holds all weights, beside what its stages and its ends take."""
    weights = geometry.taps * geometry.in_channels * tile.outputs
    boxes = tile.stages * tile.places * tile.depth
    buffers = 4 * tile.places * tile.outputs // _copies(tile)
    fits = 2 * (weights + boxes + buffers) + SMALL_SHARED <= SHARED_LIMITS[90]
    return fits and geometry.out_channels <= tile.outputs


def _copies(tile: Tile) -> int:
    """How many bulk copies write a persistent tile: each 32 places or 64 outputs, whichever are columns there."""
    return tile.places // 32 if tile.places > tile.outputs else tile.outputs // 64


def written_part(tile: Tile, box: Axes) -> tuple[Axes, int]:
    """The box, and the outputs, of what one of these copies writes."""
    if tile.places > tile.outputs:
        return part_of(box, _copies(tile)), tile.outputs
    return box, tile.outputs // _copies(tile)


# What a heuristic chooses from: places x outputs (wgrad: x depth), warps, stages. None spills: see `ccn kernels`.
_PRODUCTS = ((128, 256, 8, 4), (256, 128, 8, 4), (128, 128, 8, 6), (128, 128, 8, 4), (128, 128, 8, 3), (128, 128, 4, 4),
             (256, 64, 8, 4), (128, 64, 4, 4), (128, 64, 4, 3), (64, 128, 4, 4), (64, 64, 4, 4))  # fmt: skip
_WGRADS = ((64, 128, 256, 8, 3), (64, 256, 128, 8, 3), (64, 128, 128, 8, 3), (64, 128, 64, 4, 4), (64, 64, 64, 4, 4))
_SPLITS = (1, 2, 3, 4, 6, 8)

# The model behind the choice among them, in cycles of one processor: fitted to 368 times of 21 products of bf16 on an
# H200, which it meets to 8 % on average (benchmarks/PERFORMANCE.md).
_PRODUCTS_A_CYCLE = {"bfloat16": 1900, "float16": 1900, "float32": 950}  # multiply-adds
_BYTES_A_CYCLE = 60  # from the L2 cache
_LATENCY = 1500  # of a box, hidden by the stages
_STEP_CYCLES = 75  # of a step beside its products
_TILE_CYCLES, _WRITE_CYCLES = 5000, 2300  # of a tile: to start and end it; for 128 x 128 results
_SQUARE_CYCLES, _SQUARES_CYCLES = 150, 1300  # for each box of 128 places that is squared; once a tile
_PLANE_CYCLES, _PLANE_BYTES = 170, 1800  # of the launch that squares x, which overlaps; a cycle, of all processors
_SPLIT_CYCLES, _SPLIT_BYTES = 3800, 2800  # of the launch that adds shares up
_OTHER_REGISTERS = 90  # of a thread, beside its accumulators


def resident(tile: Tile) -> int:
    """How many programs of a wgrad one processor holds at a time: as many as its registers have accumulators for."""
    return max(1, min(4, 2 * 128 * 128 // (tile.outputs * tile.depth)))


_REASONS = {
    "descriptor": _descriptor_reason,
    "persistent": _persistent_reason,
    "gather": _gather_reason,
    "depthwise": _depthwise_reason,
    "hybrid": _hybrid_reason,
}


def _shared_bytes(tile: Tile, request: Request) -> int:
    """What the stages of the loop hold."""
    size = 4 if request.dtype == "float32" else 2
    operands = (tile.places + tile.outputs) * tile.depth
    if request.kind == "wgrad":
        operands = (tile.outputs + tile.depth) * tile.places
    return tile.stages * operands * size


def _forward(request: Request, device: Device) -> Tile:
    geometry = request.geometry
    if geometry.in_channels == 1 and geometry.groups > 1:
        return Tile("depthwise", places=32, outputs=64, warps=4, stages=1)
    if _is_cudnns(request, device) and not can_run(HYBRID, request, device):
        return HYBRID
    best = _persistent(request, device) or _best_product(request, device, geometry.in_channels, geometry.out_channels)
    return best or _gather(request, device)


def _persistent(request: Request, device: Device) -> Tile | None:
    """A persistent tile, where each processor gets so many that their beginnings and ends hide behind each other."""
    geometry = request.geometry
    narrow, wide = PERSISTENT_TILES
    tile = narrow if geometry.out_channels <= narrow.outputs else wide
    if can_run(tile, request, device):
        return None
    tiles = _boxes(tile, geometry, geometry.extent) * math.ceil(geometry.out_channels / tile.outputs)
    return tile if tiles >= LEAST_WAVES * device.processors else None


def _dgrad(request: Request, device: Device) -> Tile:
    geometry = request.geometry
    if _is_cudnns(request, device):
        return HYBRID
    return _best_product(request, device, geometry.out_channels, geometry.in_channels) or HYBRID


def _wgrad(request: Request, device: Device) -> Tile:
    geometry = request.geometry
    hybrid = not can_run(HYBRID, request, device)
    if _is_cudnns(request, device) and hybrid:
        return HYBRID
    for tile in (Tile("descriptor", *sizes, splits=0) for sizes in _WGRADS):
        fits = tile.outputs <= _width(geometry.out_channels, 64) and tile.depth <= _width(geometry.in_channels, 64)
        large = tile.outputs * tile.depth > 128 * 128 and device.capability != 90  # spills elsewhere
        if fits and not large and not can_run(tile, request, device):
            return tile if _is_linear(tile, geometry) or not hybrid else HYBRID
    narrow = geometry.groups == 1 and geometry.in_channels * geometry.taps <= 64
    return HYBRID if hybrid and not narrow else _gather_of_wgrad(request)


def _is_linear(tile: Tile, geometry: Geometry) -> bool:
    """Whether a wgrad's products run asynchronously (see wgrad.py)."""
    box = box_of(tile.places, geometry, geometry.extent, tile.squares)
    return box is not None and is_linear(box, geometry.extent)


def _gather_of_wgrad(request: Request) -> Tile:
    outputs = min(64, _width(request.geometry.out_channels))
    depth = _width(request.geometry.in_channels * request.geometry.taps)
    most, stages = (32, 2) if request.dtype == "float32" else (64, 3)
    if depth > most or request.geometry.in_channels % NEIGHBOURS == 0:
        return Tile("gather", 64, outputs, 32, warps=4, stages=3, splits=0)
    return Tile("gather", 128, outputs, depth, warps=4, stages=stages, splits=0)  # a place a thread, whole patches


_HEURISTICS = {"forward": _forward, "dgrad": _dgrad, "wgrad": _wgrad}


def candidates(request: Request, device: Device) -> list[Tile]:
    """What `ccn tune` measures: every tile that can run, of every kernel."""
    sums, outputs = request.geometry.in_channels, request.geometry.out_channels
    if request.kind == "dgrad":
        sums, outputs = outputs, sums
    if request.kind == "wgrad":
        tiles = [Tile("descriptor", *sizes, splits=0) for sizes in _WGRADS]
        tiles.append(_gather_of_wgrad(request))
    else:
        tiles = _products(request, sums, outputs)
        tiles += [tile for tile in PERSISTENT_TILES if tile.outputs <= _width(outputs, 64)]
        tiles.append(_gather(request, device))
        tiles.append(Tile("depthwise", places=32, outputs=64, warps=4, stages=1))
    return [tile for tile in (*tiles, HYBRID) if not can_run(tile, request, device)]


def _best_product(request: Request, device: Device, depth: int, outputs: int) -> Tile | None:
    """The tile of a product over descriptors that the model predicts to be fastest; None where none can run."""
    tiles = [tile for tile in _products(request, depth, outputs) if not can_run(tile, request, device)]
    small = [tile for tile in tiles if tile.places * tile.outputs <= 128 * 128 or _holds_large(request, device)]
    return min(small, key=lambda tile: predict(tile, request, device), default=None)


def _products(request: Request, depth: int, outputs: int) -> list[Tile]:
    return [
        Tile("descriptor", places, wide, _depth(depth, request), warps, stages, splits, squares)
        for places, wide, warps, stages in _PRODUCTS
        for splits in _SPLITS
        for squares in (BOXED_SQUARES if request.kind == "forward" else ("plane",))
        if wide <= _width(outputs, 64)
    ]


def _holds_large(request: Request, device: Device) -> bool:
    """Whether the end of a tile of 128 x 256 stays within the registers."""
    return device.capability == 90 and not (request.dtype == "float32" and request.kind == "dgrad")


def predict(tile: Tile, request: Request, device: Device) -> float:
    """Cycles that the model gives a product over descriptors, forward or dgrad."""
    geometry, size = request.geometry, 4 if request.dtype == "float32" else 2
    forward = request.kind == "forward"
    extent = geometry.extent if forward else geometry.in_extent
    sums, outputs = (geometry.in_channels, geometry.out_channels)[:: 1 if forward else -1]
    tiles = _boxes(tile, geometry, extent)
    programs = tiles * geometry.groups * math.ceil(outputs / tile.outputs) * tile.splits
    steps = geometry.taps * math.ceil(sums / tile.depth)
    boxes = {"rows": steps / geometry.kernel[2], "images": steps / geometry.taps}
    ends = _ends(tile, boxes.get(tile.squares, 0) if forward else 0)
    beside = _beside(tile, request)
    full, rest = divmod(programs, device.processors * beside)
    waves = (
        (full, beside),
        (min(rest, 1), math.ceil(rest / device.processors)),
    )  # count, and how many beside each other
    cycles = sum(count * (steps / tile.splits * _step(tile, request, each) + ends) for count, each in waves)
    share = device.processors / 132
    if forward and tile.squares == "plane":
        read = geometry.batch * math.prod(geometry.in_extent) * geometry.groups * sums * size
        cycles += _PLANE_CYCLES + read / (_PLANE_BYTES * share)
    if tile.splits > 1:
        cycles += _SPLIT_CYCLES + 2 * tile.splits * tiles * tile.places * outputs * 4 / (_SPLIT_BYTES * share)
    return cycles


def _boxes(tile: Tile, geometry: Geometry, extent: Axes) -> int:
    """How many of a tile's boxes cover all images."""
    box = box_of(tile.places, geometry, extent, tile.squares)
    assert box is not None
    return math.prod(math.ceil(n / step) for n, step in zip((geometry.batch, *extent[1:]), box, strict=True))


def _step(tile: Tile, request: Request, beside: int) -> float:
    """Cycles of a step, so many programs beside each other on a processor."""
    size = 4 if request.dtype == "float32" else 2
    multiply = tile.places * tile.outputs * tile.depth / _PRODUCTS_A_CYCLE[request.dtype]
    fetch = (tile.places + tile.outputs) * tile.depth * size / _BYTES_A_CYCLE
    return max(beside * max(multiply, fetch), multiply + _STEP_CYCLES, _LATENCY / (tile.stages - 1))


def _ends(tile: Tile, squared: float) -> float:
    """Cycles of a tile beside its steps, if it squares so many boxes."""
    squares = squared * _SQUARE_CYCLES * tile.places / 128 + _SQUARES_CYCLES if squared else 0
    return _TILE_CYCLES + _WRITE_CYCLES * tile.places * tile.outputs / 128**2 + squares


def _beside(tile: Tile, request: Request) -> int:
    """How many programs of a product one processor holds: by their shared memory, and by their registers."""
    threads = 32 * tile.warps
    registers = threads * min(255, tile.places * tile.outputs // threads + _OTHER_REGISTERS)
    return max(1, min(SHARED_LIMITS[90] // (_shared_bytes(tile, request) + 1024), 65536 // registers))


def _is_cudnns(request: Request, device: Device) -> bool:
    """Whether Triton has no tensor cores for the product: it is exact fp32, or the GPU is too old for them."""
    exact = request.dtype == "float32" and request.precision == "ieee"
    return (exact and not device.is_interpreter) or device.capability < TENSOR_CORES


def _depth(channels: int, request: Request, most: int = 64) -> int:
    """A power of two that divides the channels where it must, 128 bytes a row where it can."""
    most = most // 2 if request.dtype == "float32" else most
    if request.geometry.groups > 1 or not request.geometry.is_plain:
        return min(most, channels & -channels)
    return min(most, _width(channels))


def _width(channels: int, least: int = 16) -> int:
    return max(least, next_power_of_two(channels))


def _gather(request: Request, device: Device) -> Tile:
    geometry = request.geometry
    depth = geometry.in_channels * geometry.taps
    sizes = (64, min(64, _width(geometry.out_channels)), min(32, _width(depth)))
    if device.capability < TENSOR_CORES:
        sizes = (32, 32, 16)
    tile = Tile("gather", *sizes, warps=4, stages=3, squares="loop")
    if is_unrolled(tile, geometry):
        tile = dataclasses.replace(tile, places=32 * tile.warps)  # one a thread, whose whole patch it gathers
        shallow = dataclasses.replace(tile, depth=16)
        if request.dtype == "float32" and _steps(tile, geometry) > 1 and is_unrolled(shallow, geometry):
            tile = shallow  # at twice the depth Triton 3.6 spills
    if _gather_reason(tile, request, device):
        tile = dataclasses.replace(tile, squares="plane")
    blocks = geometry.groups * math.ceil(geometry.out_channels / tile.outputs)
    programs = blocks * math.ceil(geometry.batch * geometry.pixels / tile.places)
    return dataclasses.replace(tile, splits=max(1, min(8, device.processors // programs)))
