"""What our passes launch, and the tiles that they may be asked to take."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import triton
from torch import Tensor

from ccn_kernels.backends.triton import limits
from ccn_kernels.backends.triton.geometry import next_power_of_two
from ccn_kernels.backends.triton.launch import Launch
from ccn_kernels.backends.triton.tiles import BOXED_SQUARES, PERSISTENT_TILES, UNTRIED_TILES, Tile
from ccn_kernels.bench.case import Case, Family
from ccn_kernels.bench.direct import Direct, Tiles

OURS = Family(compact=True)

# places, outputs, warps, stages
SIZES = ((128, 256, 8, 4), (128, 256, 8, 3), (256, 128, 8, 4), (256, 128, 8, 3), (128, 128, 8, 6), (128, 128, 8, 4),
         (128, 128, 8, 3), (128, 128, 4, 4), (64, 256, 4, 5))  # fmt: skip
NARROW_SIZES = ((256, 64, 8, 4), (256, 64, 8, 2), (128, 64, 4, 4), (128, 64, 4, 3), (128, 64, 4, 2), (128, 64, 8, 3),
                (64, 64, 4, 4))  # fmt: skip
GATHER_SIZES = ((64, 64, 4, 3), (128, 64, 4, 3), (128, 32, 4, 3), (256, 32, 4, 3), (256, 64, 4, 3), (256, 64, 8, 3))
# outputs, depth, places, warps, stages
WGRAD_SIZES = (
    (128, 128, 64, 8, 4), (128, 64, 64, 4, 4), (64, 128, 64, 4, 4), (128, 128, 128, 8, 3), (256, 128, 64, 8, 3),
    (128, 256, 64, 8, 3), (64, 64, 64, 4, 4), (64, 64, 128, 4, 4),
)  # fmt: skip
WGRAD_GATHER_SIZES = ((64, 32, 64, 4, 3), (64, 32, 128, 4, 3), (64, 32, 128, 8, 3), (64, 64, 64, 4, 3))


class Recorder:
    """Issues launches and remembers them."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []

    def __call__(self, launch: Launch) -> None:
        self.launches.append(launch)
        launch.run()

    def product(self) -> Launch | None:
        """The launch of a product; None where cuDNN computes it."""
        return next((launch for launch in self.launches if is_product(launch)), None)


def precompile(
    case: Case,
    choices: Iterable[tuple[Tiles | None, bool]],
    mask: list[bool] | None = None,
    change: Callable[[Launch], Launch] = lambda launch: launch,
) -> None:
    """Compiles what passes with these (tiles, ReLU) launch, on all cores. ``mask``: of the backward pass, if wanted.

    What goes wrong here goes wrong again, and is recorded, where it is timed.
    """

    def warm(launch: Launch) -> None:
        launch = change(launch)
        launch.kernel.warmup(**launch.arguments, grid=launch.grid, **launch.options)

    with ThreadPoolExecutor() as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
        for tiles, relu in choices:
            direct = Direct(case, tiles, relu)
            saved = direct.forward(warm, save_quotient=mask is not None and not relu)
            if mask is not None:
                direct.backward(saved, case.grad(OURS._replace(relu=relu)), mask, warm)


def name_of(launch: Launch) -> str:
    return launch.kernel.__name__


def is_product(launch: Launch) -> bool:
    """Whether it does the convolution's arithmetic."""
    product = name_of(launch).startswith(("forward_", "dgrad_", "wgrad_"))
    return product and not name_of(launch).endswith(("_epilogue", "_reduce"))


def bytes_of(launch: Launch) -> int:
    """What its tensors hold: the least that it must move."""
    values = (getattr(value, "base", value) for value in launch.arguments.values())
    tensors = {value.data_ptr(): value for value in values if isinstance(value, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def resources(launch: Launch) -> dict[str, Any]:
    """Runs it; registers, spills and shared memory of the compiled kernel, where there is one."""
    kernel = launch.run()
    if kernel is None:
        return {}
    return {"registers": kernel.n_regs, "spills": kernel.n_spills, "shared": kernel.metadata.shared}


def label(tile: Tile) -> str:
    if tile.kernel == "hybrid":
        return "hybrid"
    parts = [tile.kernel, f"{tile.places}x{tile.outputs}x{tile.depth}", f"w{tile.warps}", f"s{tile.stages}"]
    parts += [tile.squares] if tile.squares != "plane" else []
    parts += [f"split{tile.splits}"] if tile.splits > 1 else []
    parts += [f"copies{tile.copies}"] if tile.copies > 1 else []
    parts += [f"tall{tile.boxes}"] if tile.boxes else []
    return " ".join(parts)


def default_tile(case: Case, kind: str) -> Tile:
    return Direct(case).problem().tile(kind)


def candidates(case: Case, kind: str) -> dict[str, Tile]:
    """A short list of tiles that can run a pass, by what they are called; `ccn tune` tries many more."""
    problem = Direct(case).problem()
    request, default = problem.request(kind), problem.tile(kind)
    make = {"forward": _forward_tiles, "dgrad": _dgrad_tiles, "wgrad": _wgrad_tiles}[kind]
    tiles = [tile for tile in make(case, default, request.boxable) if tile != default]
    return {label(tile): tile for tile in tiles if limits.can_run(tile, request, problem.device) is None}


def _forward_tiles(case: Case, default: Tile, boxable: bool) -> Iterator[Tile]:
    """Sizes, every way to find the squares, and splits."""
    if not boxable:
        for places, outputs, warps, stages in GATHER_SIZES:
            yield Tile("gather", places, outputs, 32, warps, stages, squares="loop")
        return
    tiles = _products(case.layer.out_channels, case.layer.in_channels, case.dtype)
    for tile, squares, splits in itertools.product(tiles, BOXED_SQUARES, {1, default.splits}):
        yield dataclasses.replace(tile, squares=squares, splits=splits)
    yield from PERSISTENT_TILES + UNTRIED_TILES


def _dgrad_tiles(case: Case, default: Tile, boxable: bool) -> Iterator[Tile]:
    if not boxable or case.layer.stride > 1:
        outputs = max(16, min(64, next_power_of_two(case.layer.in_channels)))
        for places, warps in itertools.product((64, 128), (4, 8)):
            yield Tile("gather", places, outputs, 32, warps, 3)
    for tile in _products(case.layer.in_channels, case.layer.out_channels, case.dtype):
        for splits in {1, default.splits}:
            yield dataclasses.replace(tile, splits=splits)


def _products(outputs: int, sums: int, dtype: torch.dtype) -> list[Tile]:
    """Sizes for so many channels of the result, and so many that are summed: 128 bytes of them a step."""
    depth = max(16, min(128 // dtype.itemsize, next_power_of_two(sums)))
    sizes = NARROW_SIZES if outputs <= 64 else [size for size in SIZES if size[1] <= outputs]
    return [Tile("descriptor", places, wide, depth, warps, stages) for places, wide, warps, stages in sizes]


def _wgrad_tiles(case: Case, default: Tile, boxable: bool) -> Iterator[Tile]:
    """Splits: as many as fill the GPU, and at the default size some others."""
    kernel, sizes = ("descriptor", WGRAD_SIZES) if boxable else ("gather", WGRAD_GATHER_SIZES)
    widest = next_power_of_two(case.layer.in_channels) if boxable else 64
    for outputs, depth, places, warps, stages in sizes:
        if outputs <= next_power_of_two(case.layer.out_channels) and depth <= widest:
            yield Tile(kernel, places, outputs, depth, warps, stages, 0)
    if default.kernel != "hybrid":
        for splits in (2, 4, 8, 16, 32):
            yield dataclasses.replace(default, splits=splits)
