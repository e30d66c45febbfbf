"""The tile of a pass that no table has: fixed rules, and a model of how long products take."""

from __future__ import annotations

import dataclasses
import math

from .geometry import Axes, Geometry, box_of, is_linear, next_power_of_two
from .limits import NEIGHBOURS, SHARED_LIMITS, can_run, is_unrolled, shared_bytes, steps_of
from .tiles import BOXED_SQUARES, HYBRID, PERSISTENT_TILES, Device, Request, Tile

TENSOR_CORES = 80  # the first capability whose tensor cores Triton uses
LEAST_WAVES = 2.9  # of persistent tiles: with fewer, they gain nothing on an H200 (benchmarks/PERFORMANCE.md)

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


HEURISTICS = {"forward": _forward, "dgrad": _dgrad, "wgrad": _wgrad}


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
    return max(1, min(SHARED_LIMITS[90] // (shared_bytes(tile, request) + 1024), 65536 // registers))


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
        if request.dtype == "float32" and steps_of(tile, geometry) > 1 and is_unrolled(shallow, geometry):
            tile = shallow  # at twice the depth Triton 3.6 spills
    if can_run(tile, request, device):
        tile = dataclasses.replace(tile, squares="plane")
    blocks = geometry.groups * math.ceil(geometry.out_channels / tile.outputs)
    programs = blocks * math.ceil(geometry.batch * geometry.pixels / tile.places)
    return dataclasses.replace(tile, splits=max(1, min(8, device.processors // programs)))
