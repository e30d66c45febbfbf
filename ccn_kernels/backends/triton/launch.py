"""What every pass is made of: launches as data (so that they also compile where no GPU is), and operands."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, prod
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ...spec import ConvSpec, fp32_precision, memory_format, output_size
from . import config, limits
from .geometry import Axes, Strides, box_of, geometry_of, is_boxable, next_power_of_two, strides_of
from .limits import LEAST_STEPS
from .tiles import Device, Request, Tile, batch_class, request

CONSTANTS = ("KERNEL", "STRIDE", "PADDING", "DILATION")
WEIGHT_AXES = ("output", "channel", "tap")
PLACES, CHANNELS = 32, 64  # tiles of the passes that no product bounds
TILE_BYTES, MOST_PLACES, WIDEST = 4096, 128, 1024  # of such a tile, and channels of one pixel that it holds
LARGEST_INT = 2**31 - 1


class Launch(NamedTuple):
    """One kernel launch."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    warps: int = 4
    stages: int = 3
    overlapped: bool = False  # starts while the launch before it runs, and waits for it where it reads what that wrote

    @property
    def options(self) -> dict[str, Any]:
        early = {"launch_pdl": True} if self.overlapped else {}
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True, **early}

    def run(self) -> Any:
        """Launches it; returns the compiled kernel (the interpreter has none)."""
        return self.kernel[self.grid](**self.arguments, **self.options)


class Called(NamedTuple):
    """A call of ATen's between launches, and what it returned."""

    function: Callable[..., tuple[Tensor, ...]]
    operands: tuple[Tensor, ...]
    results: tuple[Tensor, ...]


class Operand(NamedTuple):
    """A tensor [N, C, *spatial] whose pixels lie at one stride."""

    tensor: Tensor
    strides: Strides

    @property
    def reach(self) -> int:
        """The offset of its last element."""
        image, channel, pixel = self.strides
        batch, channels, *spatial = self.tensor.shape
        return (batch - 1) * image + (channels - 1) * channel + (prod(spatial) - 1) * pixel

    def named(self, name: str, axes: tuple[str, ...] = Strides._fields) -> dict[str, int]:
        """Its strides as kernels take them: name_image, name_channel, name_pixel."""
        return {f"{name}_{axis}": step for axis, step in zip(axes, self.strides, strict=True)}


def operand(tensor: Tensor) -> Operand:
    """The tensor, or a copy of it where its pixels do not lie at one stride."""
    strides = strides_of(tensor)
    if strides is None:  # a view of no images at all is contiguous, whatever its strides are
        tensor = tensor.contiguous() if tensor.numel() else tensor.new_empty(tensor.shape)
        strides = strides_of(tensor)
    assert strides is not None
    return Operand(tensor, strides)


def width(channels: int) -> int:
    """The block of channels of a pass that no product bounds."""
    return min(CHANNELS, next_power_of_two(channels))


def pass_tile(channels: int, innermost: bool, itemsize: int) -> tuple[int, int]:
    """Places and channels of a tile of a pass that no product bounds: whole pixels, if their channels lie together."""
    block = min(next_power_of_two(channels), WIDEST if innermost else CHANNELS)
    return min(MOST_PLACES, TILE_BYTES // itemsize // block), block


def tiles_of(batch: int, extent: Axes, box: Axes) -> list[int]:
    """How many boxes cover [images, rows, columns]."""
    return [ceil(size / step) for size, step in zip((batch, *extent[1:]), box, strict=True)]


def with_channels_innermost(tensor: Tensor) -> tuple[Tensor]:
    """A copy."""
    return (channels_innermost(tensor, tensor.dtype).copy_(tensor),)


def channels_innermost(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Uninitialised, of the shape [N, C, *spatial]."""
    batch, channels, *spatial = like.shape
    return like.new_empty((batch, *spatial, channels), dtype=dtype).movedim(-1, 1)


def image_descriptor(source: Operand, extent: Axes, stride: Axes, box: Axes, channels: int) -> TensorDescriptor:
    """[N, H, W, C]; under a stride [N, H / stride, stride, W / stride, stride * C] (see fprop.load_box)."""
    tensor, (image, _, pixel) = source
    batch, (_, height, width) = tensor.shape[0], extent
    row = width * pixel
    image = image if batch > 1 else height * row
    if stride[1] == stride[2] == 1:
        shape, strides = [batch, height, width, tensor.shape[1]], [image, row, pixel, 1]
        return TensorDescriptor(tensor, shape, strides, [*box, channels])
    shape = [batch, height // stride[1], stride[1], width // stride[2], stride[2] * pixel]
    strides = [image, row * stride[1], row, pixel * stride[2], 1]
    return TensorDescriptor(tensor, shape, strides, [box[0], box[1], 1, box[2], channels])


def rows_first_descriptor(source: Operand, extent: Axes, box: Axes, channels: int) -> TensorDescriptor:
    """[H, N, W, C], its box [rows, images, columns]."""
    images = image_descriptor(source, extent, (1, 1, 1), box, channels)
    (batch, height, *rest), (image, row, *steps) = images.shape, images.strides
    return TensorDescriptor(source.tensor, [height, batch, *rest], [row, image, *steps], images.block_shape)


def place_descriptor(source: Operand, places: int, block: tuple[int, int]) -> TensorDescriptor:
    """[places, C] of a tensor whose images follow each other."""
    return TensorDescriptor(source.tensor, [places, source.tensor.shape[1]], [source.strides.pixel, 1], list(block))


def packed_weight(weight: Operand) -> tuple[Operand, str]:
    """The weight without gaps, and whether its "taps" or its "channels" are outermost."""
    if weight.tensor.movedim(1, -1).is_contiguous():
        return weight, "taps"
    return operand(weight.tensor.contiguous()), "channels"


def weight_descriptor(weight: Operand, taps: int, block: tuple[int, int]) -> TensorDescriptor:
    """[O, taps * C], read in blocks: of two axes, so that the product takes them from shared memory as they are."""
    outputs, channels = weight.tensor.shape[:2]
    row = taps * channels
    return TensorDescriptor(weight.tensor, [outputs, row], [row, 1], list(block))


def is_descriptor(value: Any) -> bool:
    """Whether an argument is a tensor descriptor: Triton has a class of them, Gluon another."""
    return hasattr(value, "block_shape")


class Problem:
    """One call: its geometry, its operands, and how its kernels are chosen and issued."""

    def __init__(
        self,
        input: Tensor,
        weight: Tensor,
        spec: ConvSpec,
        device: Device,
        issue: Callable[[Launch], Any] = Launch.run,
        tiles: dict[str, Tile] | None = None,
    ) -> None:
        self.geometry = geometry_of(input, weight, spec)
        self.spec, self.device, self._issue = spec, device, issue
        self.x, self.w, self.weight = operand(input), operand(weight), weight
        self.format = memory_format(input, weight)
        self.precision = fp32_precision(spec)
        self.shape = (input.shape[0], weight.shape[0], *output_size(spec, input, weight))
        outputs = self.places * self.geometry.groups * self.geometry.out_channels
        most = max(outputs, self.in_places * weight.shape[1] * spec.groups, self.x.reach, self.w.reach)
        self.reach = most + WIDEST  # the last tile's places, too
        self.buffers: list[Tensor] = []  # what was allocated for kernels
        self.trace: list[tuple[Launch, Any] | Called] = []  # what was done: launches with what they return
        self._tiles = tiles or {}

    @property
    def dtype(self) -> torch.dtype:
        return self.x.tensor.dtype

    @property
    def index(self) -> tl.dtype:
        """What offsets are computed in."""
        return tl.int64 if self.reach > LARGEST_INT else tl.int32

    @property
    def places(self) -> int:
        return self.geometry.batch * self.geometry.pixels

    @property
    def in_places(self) -> int:
        return self.geometry.batch * self.geometry.in_pixels

    def request(self, kind: str) -> Request:
        geometry, size = self.geometry, self.dtype.itemsize
        read = [geometry.in_channels] + ([geometry.out_channels] if kind != "forward" else [])
        divides = all(extent % step == 0 for extent, step in zip(geometry.in_extent, geometry.stride, strict=True))
        boxable = divides and all(channels * size % 16 == 0 for channels in read)
        dtype = str(self.dtype).removeprefix("torch.")
        writable = self.format != torch.contiguous_format and geometry.out_channels * size % 16 == 0
        return request(kind, geometry, dtype, self.precision, self.x.strides.channel == 1, boxable, writable)

    def tile(self, kind: str) -> Tile:
        """The tile of a pass; one that was asked for must be able to run.

        Raises:
            ValueError: it cannot; the message says why.
        """
        request = self.request(kind)
        if kind not in self._tiles:
            return config.choose(request, self.device)
        reason = limits.can_run(self._tiles[kind], request, self.device)
        if reason is not None:
            raise ValueError(f"{self._tiles[kind]} cannot run {request.key}: {reason}")
        return self._tiles[kind]

    def box(self, tile: Tile, extent: Axes) -> Axes:
        """The box of a tile over the images' extent: the same for all batches of a class."""
        classed = self.geometry._replace(batch=batch_class(self.geometry.batch))
        box = box_of(tile.places, classed, extent, tile.squares, tall=tile.boxes > 0)
        assert box is not None, "can_run has seen to it"
        return box

    def splits(self, tile: Tile, programs: int, steps: int) -> int:
        """How many shares a sum of so many steps is split into: as asked for, or so that no processor idles."""
        most = max(1, steps // LEAST_STEPS)
        filling = self.device.processors * limits.resident(tile) // programs
        return max(1, min(tile.splits or filling, most))

    def issue(self, launch: Launch) -> None:
        self.trace.append((launch, self._issue(launch)))

    def call(self, function: Callable[..., tuple[Tensor, ...]], *operands: Tensor) -> tuple[Tensor, ...]:
        """What ATen computes between launches."""
        results = function(*operands)
        self.trace.append(Called(function, operands, results))
        return results

    def boxed(self, source: Operand, *, packed: bool = False) -> Operand:
        """The operand, or a copy of it, as a descriptor can read it: channels innermost; ``packed``: without gaps."""
        tensor, strides = source
        row = tensor.shape[1] * tensor[0, 0].numel()
        if is_boxable(*source) and (not packed or (strides.pixel, strides.image) == (tensor.shape[1], row)):
            return source
        return operand(*self.call(with_channels_innermost, tensor))

    def own(self, tensor: Tensor) -> Tensor:
        """A tensor that was allocated, uninitialised, for a kernel to write."""
        self.buffers.append(tensor)
        return tensor

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.own(self.x.tensor.new_empty(shape, dtype=dtype))

    def geometry_arguments(self, *names: str) -> dict[str, Any]:
        """What kernels call the constants of the geometry; of those, the ones named."""
        geometry = self.geometry
        known = {
            "batch": geometry.batch, "in_extent": geometry.in_extent, "extent": geometry.extent,
            "IN_CHANNELS": geometry.in_channels, "OUT_CHANNELS": geometry.out_channels, "GROUPS": geometry.groups,
            "KERNEL": geometry.kernel, "STRIDE": geometry.stride, "PADDING": geometry.padding,
            "DILATION": geometry.dilation, "INDEX": self.index,
        }  # fmt: skip
        return {name: known[name] for name in names}
