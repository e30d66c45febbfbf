"""What the kernels share: which pixel a tap reads, patch norms, and the end of a forward pass.

Spatial axes are always (depth, height, width): tuples of constants KERNEL, STRIDE, PADDING, DILATION, and of numbers
``extent``. A pixel is numbered within its image, a place within the whole batch. Tiles are [places, channels].
"""

import triton
import triton.language as tl

UNROLLED = tl.constexpr(9)  # taps whose loads are under way at a time: else each waits for the one before


@triton.jit
def place_of_tile(tile, batch, pixels, TILE: tl.constexpr, INDEX: tl.constexpr):
    """(image, pixel within it, whether there is such a place) of a tile's places."""
    place = tile.to(INDEX) * TILE + tl.arange(0, TILE)
    return place // pixels, place % pixels, place < batch.to(INDEX) * pixels


@triton.jit
def coordinates(pixel, extent):
    """(depth, height, width) of a pixel."""
    return pixel // (extent[2] * extent[1]), pixel // extent[2] % extent[1], pixel % extent[2]


@triton.jit
def quotient_of(number, divisor):
    """The quotient of numbers that are not negative: a third of the instructions that signs take."""
    wide: tl.constexpr = tl.uint64 if number.dtype == tl.int64 else tl.uint32
    return (number.to(wide) // tl.cast(divisor, wide)).to(number.dtype)


@triton.jit
def coordinates_of_tile(tile, batch, extent, TILE: tl.constexpr, INDEX: tl.constexpr):
    """(place, image, (depth, height, width), whether there is such a place) of a tile's places, by few divisions."""
    place = tile.to(INDEX) * TILE + tl.arange(0, TILE)
    line = quotient_of(place, extent[2])
    plane = quotient_of(line, extent[1])
    image = quotient_of(plane, extent[0])
    at = (plane - image * extent[0], line - plane * extent[1], place - line * extent[2])
    return place, image, at, place < batch.to(INDEX) * (extent[0] * extent[1] * extent[2])


@triton.jit
def dense_places(place, pixels, CHANNELS: tl.constexpr, INNERMOST: tl.constexpr):
    """Offsets of places in a tensor without gaps whose channels lie side by side, if INNERMOST, or image by image."""
    wide = tl.cast(pixels, place.dtype)  # one image alone may have more elements than 32 bits count
    return place * CHANNELS if INNERMOST else place + place // pixels * ((CHANNELS - 1) * wide)


@triton.jit
def window_start(at, STRIDE: tl.constexpr, PADDING: tl.constexpr):
    """(depth, height, width) where the window of the output at ``at`` starts; it may lie in the padding."""
    return at[0] * STRIDE[0] - PADDING[0], at[1] * STRIDE[1] - PADDING[1], at[2] * STRIDE[2] - PADDING[2]


@triton.jit
def source_pixel(start, tap, extent, KERNEL: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr):
    """The input pixel that a tap of the window at ``start`` reads, and whether it lies in the image.

    The pixel is a sum of what depends on the window and what depends on the tap: cheap when they are broadcast.
    """
    depth = tap // (KERNEL[2] * KERNEL[1]) * DILATION[0]
    height = tap // KERNEL[2] % KERNEL[1] * DILATION[1]
    width = tap % KERNEL[2] * DILATION[2]
    first = (start[0] * extent[1] + start[1]) * extent[2] + start[2]
    inside = (start[2] + width >= 0) & (start[2] + width < extent[2])
    if KERNEL[1] > 1 or PADDING[1] > 0:
        inside = inside & (start[1] + height >= 0) & (start[1] + height < extent[1])
    if KERNEL[0] > 1 or PADDING[0] > 0:
        inside = inside & (start[0] + depth >= 0) & (start[0] + depth < extent[0])
    return first + ((depth * extent[1] + height) * extent[2] + width), inside


@triton.jit
def within(position, extent):
    """Whether 0 <= position < extent, in one comparison."""
    return position.to(tl.uint64 if position.dtype == tl.int64 else tl.uint32) < extent


@triton.jit
def window_source(source, start, extent, X_PIXEL: tl.constexpr):
    """Where windows start, which may be before or after the image, from pointers to the images. [places]"""
    return source + ((start[0] * extent[1] + start[1]) * extent[2] + start[2]) * X_PIXEL


@triton.jit
def patch_column(source, start, valid, extent, x_channel, X_PIXEL: tl.constexpr, FLAT: tl.constexpr,
                 CHANNELS: tl.constexpr, KERNEL: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
                 CHANNEL_MAJOR: tl.constexpr, INDEX: tl.constexpr):  # fmt: skip
    """One element of each place's patch, [places]. What depends on it alone is a constant, or the same for all places:
    the constants are the offsets that loads add for free."""
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    tap: tl.constexpr = FLAT % TAPS if CHANNEL_MAJOR else FLAT // CHANNELS
    channel: tl.constexpr = FLAT // TAPS if CHANNEL_MAJOR else FLAT % CHANNELS
    depth: tl.constexpr = tap // (KERNEL[2] * KERNEL[1]) * DILATION[0]
    height: tl.constexpr = tap // KERNEL[2] % KERNEL[1] * DILATION[1]
    width: tl.constexpr = tap % KERNEL[2] * DILATION[2]
    inside = valid
    if PADDING[0] > 0:  # no window leaves an image that is not padded
        inside = inside & within(start[0] + depth, extent[0])
    if PADDING[1] > 0:
        inside = inside & within(start[1] + height, extent[1])
    if PADDING[2] > 0:
        inside = inside & within(start[2] + width, extent[2])
    line = (depth * extent[1] + height) * tl.cast(extent[2], INDEX) * X_PIXEL
    place = source + line + channel * tl.cast(x_channel, INDEX) + width * X_PIXEL
    return tl.load(place, mask=inside, other=0.0)


@triton.jit
def halved(columns):
    half: tl.constexpr = len(columns) // 2
    pairs = ()
    for index in tl.static_range(half):
        pairs += (tl.join(columns[index], columns[index + half]),)
    return pairs


@triton.jit
def joined(columns):
    """A power of two of columns [places], as [places, 2, 2, ...]."""
    if len(columns) == 1:
        return columns[0]
    else:
        return joined(halved(columns))


@triton.jit
def patch_matrix(source, start, valid, extent, x_channel, X_PIXEL: tl.constexpr, FIRST: tl.constexpr,
                 BLOCK_K: tl.constexpr, CHANNELS: tl.constexpr, KERNEL: tl.constexpr, PADDING: tl.constexpr,
                 DILATION: tl.constexpr, CHANNEL_MAJOR: tl.constexpr, INDEX: tl.constexpr):  # fmt: skip
    """Columns FIRST, ... of the patch matrix, [places, BLOCK_K], and the sums of their squares [places].

    Column by column, so that each place stays in one thread, which then computes little but addresses of whole rows.
    """
    LEFT: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2] * CHANNELS - FIRST
    bits: tl.constexpr = tl.int16 if source.dtype.element_ty.primitive_bitwidth == 16 else tl.int32
    squares = tl.zeros(valid.shape, tl.float32)
    columns = ()
    for index in tl.static_range(min(BLOCK_K, LEFT)):
        column = patch_column(source, start, valid, extent, x_channel, X_PIXEL, FIRST + index, CHANNELS, KERNEL,
                              PADDING, DILATION, CHANNEL_MAJOR, INDEX)  # fmt: skip
        wide = column.to(tl.float32)
        squares += wide * wide
        columns += (column.to(bits, bitcast=True),)  # type: ignore[assignment]
    for _ in tl.static_range(BLOCK_K - LEFT):
        columns += (tl.zeros(valid.shape, bits),)  # type: ignore[assignment]
    # as integers: Triton 3.6 would turn a reshaped operand itself into a view of shared memory, and fail
    matrix = tl.reshape(joined(columns), (valid.shape[0], BLOCK_K))
    return matrix.to(source.dtype.element_ty, bitcast=True), squares


@triton.jit
def seeing_pixel(at, tap, extent, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
                 DILATION: tl.constexpr):  # fmt: skip
    """The output pixel whose tap reads the input at ``at``, and whether there is one."""
    depth = at[0] + (PADDING[0] - tap // (KERNEL[2] * KERNEL[1]) * DILATION[0])
    height = at[1] + (PADDING[1] - tap // KERNEL[2] % KERNEL[1] * DILATION[1])
    width = at[2] + (PADDING[2] - tap % KERNEL[2] * DILATION[2])
    seen = (depth >= 0) & (height >= 0) & (width >= 0)
    if STRIDE[0] * STRIDE[1] * STRIDE[2] > 1:
        seen = seen & (depth % STRIDE[0] == 0) & (height % STRIDE[1] == 0) & (width % STRIDE[2] == 0)
        depth, height, width = depth // STRIDE[0], height // STRIDE[1], width // STRIDE[2]
    seen = seen & (depth < extent[0]) & (height < extent[1]) & (width < extent[2])
    return (depth * extent[1] + height) * extent[2] + width, seen


@triton.jit
def reciprocal_divisor(norm, delta):
    """1 / d, where d = norm + delta. With delta = 0 the quotient of an empty patch is 0."""
    divisor = norm + delta
    return tl.where(divisor == 0, 0.0, 1.0 / tl.where(divisor == 0, 1.0, divisor))


@triton.jit
def once(values):
    """The same values [places]. The compiler moves no arithmetic across this gather: without it, it repeats roots and
    divisions for every element of a tile that needs one a place."""
    return tl.gather(values, tl.arange(0, values.shape[0]), 0)


@triton.jit
def patch_squares(plane, at, extent, valid, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
                  DILATION: tl.constexpr):  # fmt: skip
    """Box sums of an image's plane of squares: the squared norm of each patch. [places]"""
    start = window_start(at, STRIDE, PADDING)
    squares = tl.zeros(valid.shape, tl.float32)
    for tap in tl.range(KERNEL[0] * KERNEL[1] * KERNEL[2], loop_unroll_factor=UNROLLED):
        pixel, inside = source_pixel(start, tap, extent, KERNEL, PADDING, DILATION)
        squares += tl.load(plane + pixel, mask=inside & valid, other=0.0)
    return squares


@triton.jit
def transposed_box(q, at, extent, valid, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
                   DILATION: tl.constexpr):  # fmt: skip
    """For each input pixel, the sum of an image's q over the patches that hold it. [places]"""
    total = tl.zeros(valid.shape, tl.float32)
    for tap in tl.range(KERNEL[0] * KERNEL[1] * KERNEL[2], loop_unroll_factor=UNROLLED):
        pixel, seen = seeing_pixel(at, tap, extent, KERNEL, STRIDE, PADDING, DILATION)
        total += tl.load(q + pixel, mask=seen & valid, other=0.0)
    return total


@triton.jit
def write_output(u, inverse, y, quotient, bias, alpha, where, y_channel, channel, valid, in_channels,
                 RELU: tl.constexpr):  # fmt: skip
    """Division (by 1 / inverse), scale, bias and ReLU of u [places, channels]; inverse broadcasts to it.

    ``where`` [places]: offsets of the places in y and quotient; ``channel`` [channels]: which of all output channels.
    """
    mask = valid[:, None] & in_channels[None, :]
    offset = where[:, None] + (channel * y_channel)[None, :]
    z = u * inverse
    result = z * tl.load(alpha).to(tl.float32)
    if bias is not None:
        result += tl.load(bias + channel, mask=in_channels, other=0.0).to(tl.float32)[None, :]
    if RELU:
        result = tl.where(result < 0, 0.0, result)  # NaN stays
    tl.store(y + offset, result.to(y.dtype.element_ty), mask=mask)
    if quotient is not None:
        tl.store(quotient + offset, z.to(quotient.dtype.element_ty), mask=mask)
