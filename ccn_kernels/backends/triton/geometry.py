"""One call as the kernels see it: three spatial axes, and operands whose pixels lie at one stride."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from ...spec import ConvSpec, output_size

Axes = tuple[int, int, int]
ALIGNMENT = 16  # bytes: of the address and of the outer strides of what a descriptor reads
ONES = (1, 1, 1)


class Geometry(NamedTuple):
    """Shapes of one compact convolution; channels are those of one group. Missing axes have extent 1."""

    batch: int
    groups: int
    in_channels: int
    out_channels: int
    in_extent: Axes
    extent: Axes
    kernel: Axes
    stride: Axes
    padding: Axes
    dilation: Axes

    @property
    def pixels(self) -> int:
        return math.prod(self.extent)

    @property
    def in_pixels(self) -> int:
        return math.prod(self.in_extent)

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @property
    def is_flat(self) -> bool:
        """Whether descriptors' two spatial axes suffice."""
        return self.in_extent[0] == self.extent[0] == self.kernel[0] == 1

    @property
    def is_plain(self) -> bool:
        return self.stride == ONES


def geometry_of(input: Tensor, weight: Tensor, spec: ConvSpec) -> Geometry:
    in_extent, kernel = _three(input.shape[2:], 1), _three(weight.shape[2:], 1)
    extent = _three(output_size(spec, input, weight), 1)
    stride, padding, dilation = _three(spec.stride, 1), _three(spec.padding, 0), _three(spec.dilation, 1)
    if kernel == stride == ONES and padding == (0, 0, 0):  # every pixel by itself: one axis will do
        in_extent = extent = (1, 1, math.prod(extent))
        dilation = ONES
    in_channels, out_channels = weight.shape[1], weight.shape[0] // spec.groups
    return Geometry(
        input.shape[0], spec.groups, in_channels, out_channels, in_extent, extent, kernel, stride, padding, dilation
    )


def _three(axes: Any, fill: int) -> Axes:
    return (fill,) * (3 - len(axes)) + tuple(axes)


class Strides(NamedTuple):
    """Where [image, channel, pixel] lies."""

    image: int
    channel: int
    pixel: int


def strides_of(tensor: Tensor) -> Strides | None:
    """Strides of [N, C, *spatial]; None where the pixels do not lie at one stride."""
    pixel, expected = None, 1
    for size, stride in zip(reversed(tensor.shape[2:]), reversed(tensor.stride()[2:]), strict=True):
        if size == 1:
            continue
        if pixel is None:
            pixel = stride
        if stride != pixel * expected:
            return None
        expected *= size
    if pixel is None:  # one pixel: as if channels_last where that is possible
        pixel = tensor.shape[1] if tensor.stride(1) == 1 else 1
    return Strides(tensor.stride(0), tensor.stride(1), pixel)


def is_boxable(tensor: Tensor, strides: Strides | None) -> bool:
    """Whether a descriptor can read it: channels innermost, all else aligned."""
    if strides is None or (strides.channel != 1 and tensor.shape[1] != 1):
        return False
    steps = [strides.pixel] + ([strides.image] if tensor.shape[0] > 1 else [])
    aligned = all(step > 0 and step * tensor.element_size() % ALIGNMENT == 0 for step in steps)
    return aligned and strides.pixel >= tensor.shape[1] and tensor.data_ptr() % ALIGNMENT == 0


def next_power_of_two(value: int) -> int:
    return 1 << max(0, value - 1).bit_length()


def box_of(places: int, geometry: Geometry, extent: Axes, squares: str, tall: bool = False) -> Axes | None:
    """The box [images, rows, columns] of ``places`` (a power of two) places that wastes least at the edges.

    ``squares`` may ask for boxes that hold whole "rows" or "images"; None where none can. Among equals wide boxes win,
    as neighbours share what their taps read, or ``tall`` ones.
    """
    rows, columns = next_power_of_two(extent[1]), next_power_of_two(extent[2])
    least_rows = next_power_of_two(max(extent[1], geometry.in_extent[1])) if squares == "images" else 1
    least_columns = next_power_of_two(max(extent[2], geometry.in_extent[2])) if squares in ("rows", "images") else 1
    boxes = [
        (places // (high * wide), high, wide)
        for wide in _powers(least_columns, max(columns, least_columns))
        for high in _powers(least_rows, max(rows, least_rows))
        if high * wide <= places
    ]

    def waste(box: Axes) -> int:
        return math.prod(
            math.ceil(size / step) * step for size, step in zip((geometry.batch, *extent[1:]), box, strict=True)
        )

    first, second = (1, 2) if tall else (2, 1)
    return min(boxes, key=lambda box: (waste(box), -box[first], -box[second]), default=None)


def _powers(least: int, most: int) -> list[int]:
    return [1 << i for i in range(least.bit_length() - 1, most.bit_length())]


def part_of(box: Axes, shares: int) -> Axes:
    """The box of one of ``shares`` equal runs of a box's places."""
    sizes = []
    for size in box:
        step = math.gcd(size, shares)
        sizes.append(size // step)
        shares //= step
    return sizes[0], sizes[1], sizes[2]


def is_linear(box: Axes, extent: Axes) -> bool:
    """Whether boxes, one after the other, hold places one after the other."""
    images, rows, columns = box
    whole_rows = columns == extent[2] and extent[1] % rows == 0
    whole_images = whole_rows and rows == extent[1]
    return whole_images or (whole_rows and images == 1) or (images == rows == 1 and extent[2] % columns == 0)


def squares_of_centre(geometry: Geometry, squares: str) -> bool:
    """Whether a tile that holds whole "rows" or "images" finds every patch's squares at the centre's taps."""
    axes = (2,) if squares == "rows" else (1, 2)
    centred = all(
        geometry.padding[axis] % geometry.dilation[axis] == 0
        and geometry.padding[axis] // geometry.dilation[axis] < geometry.kernel[axis]
        for axis in axes
    )
    return geometry.is_plain and geometry.is_flat and centred
