"""The forward pass in one kernel: implicit GEMM, squares of the patch in the same loop, division, scale, bias, ReLU.

Three mainloops: ``descriptor`` (boxes of pixels brought by the tensor memory accelerator, padding for free),
``gather`` (pointers: any strides, channels and groups), ``depthwise`` (one input channel a group, no matrix product).
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from .indexing import (
    coordinates,
    coordinates_of_tile,
    dense_places,
    once,
    patch_matrix,
    patch_squares,
    place_of_tile,
    reciprocal_divisor,
    source_pixel,
    window_source,
    window_start,
    write_output,
)

LARGE = tl.constexpr(32768)  # elements of a tile that is written in parts
AHEAD = tl.constexpr(4)  # boxes that are on their way while one is squared


@triton.jit
def load_box(image, position, channel, tap, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
             DILATION: tl.constexpr, CHANNELS: tl.constexpr, BOX: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """What one tap of a box of output pixels reads, [places, BLOCK channels]; zeros outside the image.

    ``position``: (image, row, column) of the box. Under a stride the descriptor's axes are
    [N, H / stride, stride, W / stride, stride * C], so that every read is of neighbours.
    """
    row = (tap // KERNEL[2]) * DILATION[1] - PADDING[1]
    column = (tap % KERNEL[2]) * DILATION[2] - PADDING[2]
    if STRIDE[1] == 1 and STRIDE[2] == 1:
        box = image.load([position[0], position[1] + row, position[2] + column, channel])
    else:
        # shifted by a multiple of the stride, so that no division meets a negative number
        row += (PADDING[1] + STRIDE[1] - 1) // STRIDE[1] * STRIDE[1]
        column += (PADDING[2] + STRIDE[2] - 1) // STRIDE[2] * STRIDE[2]
        height = position[1] + row // STRIDE[1] - (PADDING[1] + STRIDE[1] - 1) // STRIDE[1]
        width = position[2] + column // STRIDE[2] - (PADDING[2] + STRIDE[2] - 1) // STRIDE[2]
        folded = column % STRIDE[2] * CHANNELS + channel
        box = image.load([position[0], height, row % STRIDE[1], width, folded])
    return tl.reshape(box, (BOX[0] * BOX[1] * BOX[2], BLOCK))


@triton.jit
def box_places(position, BOX: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr):
    """(image, row, column) of each place of one of the equal parts of a box. [places / PARTS]"""
    count: tl.constexpr = BOX[0] * BOX[1] * BOX[2] // PARTS
    index = PART * count + tl.arange(0, count)
    image = position[0] + index // (BOX[1] * BOX[2])
    return image, position[1] + index // BOX[2] % BOX[1], position[2] + index % BOX[2]


@triton.jit
def tile_position(tile, tiles_h, tiles_w, BOX: tl.constexpr):
    """(image, row, column) of a box, by its number."""
    column = tile % tiles_w * BOX[2]
    row = tile // tiles_w % tiles_h * BOX[1]
    return tile // (tiles_w * tiles_h) * BOX[0], row, column


@triton.jit
def sum_over_axis(squares, AXIS: tl.constexpr, BOX: tl.constexpr, KERNEL: tl.constexpr, PADDING: tl.constexpr,
                  DILATION: tl.constexpr):  # fmt: skip
    """Box sums of squares [places] along an axis that the tile holds whole: 1 for rows, 2 for columns."""
    apart: tl.constexpr = BOX[2] if AXIS == 1 else 1
    taps: tl.constexpr = KERNEL[AXIS]
    place = tl.arange(0, BOX[0] * BOX[1] * BOX[2])
    at = place // apart % BOX[AXIS]
    total = tl.zeros_like(squares)
    for tap in tl.static_range(taps):
        shift = tap * DILATION[AXIS] - PADDING[AXIS]
        inside = (at + shift >= 0) & (at + shift < BOX[AXIS])
        total += tl.where(inside, tl.gather(squares, tl.where(inside, place + shift * apart, place), 0), 0.0)
    return total


@triton.jit
def squares_at_centre(x, position, first_channel, KERNEL: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
                      CHANNELS: tl.constexpr, BOX: tl.constexpr, BLOCK_K: tl.constexpr,
                      WHOLE_ROWS: tl.constexpr):  # fmt: skip
    """Squared patch norms of a tile that holds whole rows, or whole images: only the centre's taps are squared."""
    blocks: tl.constexpr = (CHANNELS + BLOCK_K - 1) // BLOCK_K
    rows: tl.constexpr = KERNEL[1] if WHOLE_ROWS else 1
    first_row: tl.constexpr = 0 if WHOLE_ROWS else PADDING[1] // DILATION[1]
    column: tl.constexpr = PADDING[2] // DILATION[2]
    partial = tl.zeros((BOX[0] * BOX[1] * BOX[2], BLOCK_K), tl.float32)
    for step in tl.range(rows * blocks, num_stages=AHEAD):  # unasked, loads that no product takes wait for each other
        tap = (first_row + step // blocks) * KERNEL[2] + column
        values = load_box(x, position, first_channel + step % blocks * BLOCK_K, tap, KERNEL, (1, 1, 1), PADDING,
                          DILATION, CHANNELS, BOX, BLOCK_K).to(tl.float32)  # fmt: skip
        partial += values * values
    squares = tl.sum(partial, 1)
    squares = sum_over_axis(squares, 2, BOX, KERNEL, PADDING, DILATION)
    if not WHOLE_ROWS:
        squares = sum_over_axis(squares, 1, BOX, KERNEL, PADDING, DILATION)
    return squares


@triton.jit
def multiply(accumulator, x, w, PRECISION: tl.constexpr):
    """One step: accumulator [channels, places] += w [channels, K] x [places, K]^T.

    The channels are the rows: a left operand that is a reshaped box would go through registers, which Triton 3.6
    overwrites while the tensor cores still read them.
    """
    return tl.dot(w, tl.trans(x), accumulator, input_precision=PRECISION)


@triton.jit
def output_channels(group, block, OUT_CHANNELS: tl.constexpr, BLOCK_O: tl.constexpr, INDEX: tl.constexpr):
    """Numbers of a block's channels among all output channels, and which of them belong to the group. [channels]"""
    channel = block * BLOCK_O + tl.arange(0, BLOCK_O)
    return (group * OUT_CHANNELS + channel).to(INDEX), channel < OUT_CHANNELS


@triton.jit
def share_of(steps, split, splits, WHOLE: tl.constexpr):
    """(first step, steps) of a split. The compiler must see that there is one: else it also plans for none, moves the
    accumulators there, and the assembler then runs the tensor cores' asynchronous products one by one."""
    if WHOLE:
        first = 0
        count = steps
    else:
        first = split * (steps // splits) + tl.minimum(split, steps % splits)  # no product that could overflow
        count = tl.maximum(steps // splits + (split < steps % splits), 1)
    return first, count


@triton.jit
def halves(values):
    """The first and the second half of a vector, or of a matrix's columns."""
    if len(values.shape) == 1:
        both = tl.trans(tl.reshape(values, (2, values.shape[0] // 2)))
    else:
        both = tl.permute(tl.reshape(values, (values.shape[0], 2, values.shape[1] // 2)), (0, 2, 1))
    return tl.split(both)


@triton.jit
def write_quarters(u, inverse, y, quotient, bias, alpha, position, batch, extent, y_image, y_channel, y_pixel, channel,
                   in_channels, HALF: tl.constexpr, BOX: tl.constexpr, RELU: tl.constexpr,
                   INDEX: tl.constexpr):  # fmt: skip
    """One half of a large tile, u [channels, places], in two parts: what they need for a moment fits the registers."""
    u0, u1 = halves(u)
    inverse0, inverse1 = halves(inverse)
    for part in tl.static_range(2):
        image, row, column = box_places(position, BOX, 2 * HALF + part, 4)
        valid = (image < batch) & (row < extent[1]) & (column < extent[2])
        where = image.to(INDEX) * y_image + (row * extent[2] + column).to(INDEX) * y_pixel
        write_output(tl.trans(u1 if part else u0), (inverse1 if part else inverse0)[:, None], y, quotient, bias, alpha,
                     where, y_channel, channel, valid, in_channels, RELU)  # fmt: skip


@triton.jit
def write_tile(u, squares, y, quotient, norm, partial_u, partial_squares, bias, alpha, delta, place, where, norm_where,
               places, y_channel, channel, in_channels, valid, split, block, OUT_CHANNELS: tl.constexpr,
               GROUPS: tl.constexpr, RELU: tl.constexpr, SHARED: tl.constexpr):  # fmt: skip
    """The finished tile; or, where K is split, this split's share of it in fp32.

    u [channels, places]. ``place``: within the whole batch; ``where``: in y; ``norm_where``: in norm.
    Shares: partial_u [splits, N * pixels, O], partial_squares [splits, N, groups, pixels].
    SHARED: each split has squared its own steps alone.
    """
    u = tl.trans(u)
    if partial_u is None:
        r = tl.sqrt_rn(squares)
        inverse = once(reciprocal_divisor(r, delta))
        if block == 0:
            tl.store(norm + norm_where, r, mask=valid)
        write_output(u, inverse[:, None], y, quotient, bias, alpha, where, y_channel, channel, valid, in_channels,
                     RELU)  # fmt: skip
    else:
        share = tl.cast(split, tl.int64) * places
        mask = valid[:, None] & in_channels[None, :]
        row = (share + place)[:, None] * (OUT_CHANNELS * GROUPS)
        tl.store(partial_u + row + channel[None, :], u, mask=mask)
        if not SHARED:
            squares = tl.where(split == 0, squares, 0.0)
        if block == 0:
            tl.store(partial_squares + share * GROUPS + norm_where, squares, mask=valid)


@triton.jit(do_not_specialize=["batch", "splits", "tiles_o", "tiles_h", "tiles_w"])
def forward_descriptor(
    x, w, y, quotient, norm, partial_u, partial_squares, plane, bias, alpha, delta,
    batch, in_extent, extent, y_image, y_channel, y_pixel, tiles_h, tiles_w, tiles_o, splits,
    IN_CHANNELS: tl.constexpr, OUT_CHANNELS: tl.constexpr, GROUPS: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    BOX: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr, SQUARES: tl.constexpr,
    RELU: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    OVERLAPPED: tl.constexpr,
):  # fmt: skip
    """x: descriptor (see load_box); w: descriptor [O, taps * C]; y, quotient, norm as in the operator.

    SQUARES says where the norm comes from: the centre's taps of a tile that holds whole "rows" or "images", or a
    "plane" of squares made before. Not from the loop's own boxes: Triton 3.6 keeps too few of them when registers read
    what the tensor cores read, and the next box arrives before those are done.
    """
    TILE: tl.constexpr = BOX[0] * BOX[1] * BOX[2]
    BLOCKS: tl.constexpr = (IN_CHANNELS + BLOCK_K - 1) // BLOCK_K
    STEPS: tl.constexpr = BLOCKS * KERNEL[1] * KERNEL[2]
    tile, split = tl.program_id(0), tl.program_id(1)
    block_o = tile % tiles_o
    group = tile // tiles_o % GROUPS
    position = tile_position(tile // (tiles_o * GROUPS), tiles_h, tiles_w, BOX)

    if SQUARES == "rows" or SQUARES == "images":  # first, while no accumulators crowd the registers
        squares = squares_at_centre(x, position, group * IN_CHANNELS, KERNEL, PADDING, DILATION, IN_CHANNELS, BOX,
                                    BLOCK_K, SQUARES == "rows")  # fmt: skip
    u = tl.zeros((BLOCK_O, TILE), tl.float32)
    first, count = share_of(STEPS, split, splits, partial_u is None)
    for index in range(count):
        step = first + index
        tap = step // BLOCKS
        k = step % BLOCKS * BLOCK_K
        values = load_box(x, position, group * IN_CHANNELS + k, tap, KERNEL, STRIDE, PADDING, DILATION,
                          IN_CHANNELS * GROUPS, BOX, BLOCK_K)  # fmt: skip
        weights = w.load([group * OUT_CHANNELS + block_o * BLOCK_O, tap * IN_CHANNELS + k])
        u = multiply(u, values, weights, PRECISION)

    image, row, column = box_places(position, BOX, 0, 1)
    valid = (image < batch) & (row < extent[1]) & (column < extent[2])
    image = image.to(INDEX)
    pixel = (row * extent[2] + column).to(INDEX)
    if SQUARES == "plane":
        if OVERLAPPED:
            gdc_wait()  # for the launch that makes the plane
        at = (tl.zeros_like(row), row, column)
        source = plane + (image * GROUPS + group) * (in_extent[1] * in_extent[2])
        squares = patch_squares(source, at, in_extent, valid, KERNEL, STRIDE, PADDING, DILATION)

    pixels = extent[1] * extent[2]
    channel, in_channels = output_channels(group, block_o, OUT_CHANNELS, BLOCK_O, INDEX)
    if partial_u is None and TILE * BLOCK_O >= LARGE:
        r = tl.sqrt_rn(squares)
        if block_o == 0:
            tl.store(norm + (image * GROUPS + group) * pixels + pixel, r, mask=valid)
        u0, u1 = halves(u)
        inverse0, inverse1 = halves(once(reciprocal_divisor(r, delta)))
        write_quarters(u0, inverse0, y, quotient, bias, alpha, position, batch, extent, y_image, y_channel, y_pixel,
                       channel, in_channels, 0, BOX, RELU, INDEX)  # fmt: skip
        write_quarters(u1, inverse1, y, quotient, bias, alpha, position, batch, extent, y_image, y_channel, y_pixel,
                       channel, in_channels, 1, BOX, RELU, INDEX)  # fmt: skip
    else:
        where = image * y_image + pixel * y_pixel
        norm_where = (image * GROUPS + group) * pixels + pixel
        write_tile(u, squares, y, quotient, norm, partial_u, partial_squares, bias, alpha, delta,
                   image * pixels + pixel, where, norm_where, tl.cast(batch, tl.int64) * pixels, y_channel, channel,
                   in_channels, valid, split, block_o, OUT_CHANNELS, GROUPS, RELU, False)  # fmt: skip


@triton.jit
def gather_columns(x, w, start, valid, in_extent, x_channel, channel, in_channels, X_PIXEL: tl.constexpr,
                   CHANNEL_MAJOR: tl.constexpr, IN_CHANNELS: tl.constexpr, KERNEL: tl.constexpr,
                   PADDING: tl.constexpr, DILATION: tl.constexpr, TILE: tl.constexpr, BLOCK_O: tl.constexpr,
                   BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr):  # fmt: skip
    """All of a short sum, unrolled: u and squares. x: where the group's channels start in the images; w: packed."""
    TOTAL: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2] * IN_CHANNELS
    u = tl.zeros((BLOCK_O, TILE), tl.float32)
    squares = tl.zeros((TILE,), tl.float32)
    source = window_source(x, start, in_extent, X_PIXEL)
    for first in tl.static_range(0, TOTAL, BLOCK_K):
        values, more = patch_matrix(source, start, valid, in_extent, x_channel, X_PIXEL, first, BLOCK_K, IN_CHANNELS,
                                    KERNEL, PADDING, DILATION, CHANNEL_MAJOR, INDEX)  # fmt: skip
        k = first + tl.arange(0, BLOCK_K)
        weights = tl.load(w + (channel * TOTAL)[:, None] + k[None, :],
                          mask=in_channels[:, None] & (k < TOTAL)[None, :], other=0.0)  # fmt: skip
        u = multiply(u, values, weights, PRECISION)
        squares += more
    return u, squares


@triton.jit
def gather_steps(x, w, start, valid, in_extent, x_channel, w_output, w_channel, w_tap, channel, in_channels, first,
                 count, SQUARES: tl.constexpr, X_PIXEL: tl.constexpr, IN_CHANNELS: tl.constexpr, KERNEL: tl.constexpr,
                 PADDING: tl.constexpr, DILATION: tl.constexpr, TILE: tl.constexpr, BLOCK_O: tl.constexpr,
                 BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr):  # fmt: skip
    """Some steps of a sum: u and, if they are summed in this loop, squares. x as above."""
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    ALIGNED: tl.constexpr = IN_CHANNELS % BLOCK_K == 0  # a block of K lies within one tap
    u = tl.zeros((BLOCK_O, TILE), tl.float32)
    partial = tl.zeros((TILE, BLOCK_K), tl.float32)
    weight = w + channel * w_output
    for index in range(count):
        step = first + index
        if ALIGNED:
            tap = step // (IN_CHANNELS // BLOCK_K)
            k = step % (IN_CHANNELS // BLOCK_K) * BLOCK_K + tl.arange(0, BLOCK_K)
            in_pixel, inside = source_pixel(start, tap, in_extent, KERNEL, PADDING, DILATION)
            x_offset = (in_pixel * X_PIXEL)[:, None] + (k.to(INDEX) * x_channel)[None, :]
            x_mask = (inside & valid)[:, None]
            w_offset = k * w_channel + tap * w_tap
            w_mask = in_channels[:, None]
        else:
            flat = step * BLOCK_K + tl.arange(0, BLOCK_K)
            tap, k = flat // IN_CHANNELS, flat % IN_CHANNELS
            column = (start[0][:, None], start[1][:, None], start[2][:, None])
            in_pixel, inside = source_pixel(column, tap[None, :], in_extent, KERNEL, PADDING, DILATION)
            x_offset = in_pixel * X_PIXEL + (k.to(INDEX) * x_channel)[None, :]
            x_mask = inside & valid[:, None] & (tap < TAPS)[None, :]
            w_offset = k * w_channel + tap * w_tap
            w_mask = in_channels[:, None] & (tap < TAPS)[None, :]
        values = tl.load(x[:, None] + x_offset, mask=x_mask, other=0.0)
        weights = tl.load(weight[:, None] + w_offset[None, :], mask=w_mask, other=0.0)
        u = multiply(u, values, weights, PRECISION)
        if SQUARES == "loop":
            wide = values.to(tl.float32)
            partial += wide * wide
    return u, tl.sum(partial, 1)


@triton.jit(do_not_specialize=["batch", "splits"])
def forward_gather(
    x, w, y, quotient, norm, partial_u, partial_squares, plane, bias, alpha, delta,
    batch, in_extent, extent, x_image, x_channel, w_output, w_channel, w_tap, splits,
    IN_CHANNELS: tl.constexpr, OUT_CHANNELS: tl.constexpr, GROUPS: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    TILE: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr, SQUARES: tl.constexpr,
    X_PIXEL: tl.constexpr, W_ORDER: tl.constexpr, Y_INNERMOST: tl.constexpr, UNROLLED: tl.constexpr,
    RELU: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """x, w by their strides; y has no gaps. SQUARES: "loop" or "plane".

    W_ORDER: whether "taps" or "channels" are outermost in an output's weights, which have no gaps.
    Y_INNERMOST: whether y's channels lie side by side. UNROLLED: a short sum that is not split.
    """
    TILES_O: tl.constexpr = (OUT_CHANNELS + BLOCK_O - 1) // BLOCK_O
    STEPS: tl.constexpr = (KERNEL[0] * KERNEL[1] * KERNEL[2] * IN_CHANNELS + BLOCK_K - 1) // BLOCK_K
    tile, split = tl.program_id(0), tl.program_id(1)
    block_o = tile % TILES_O
    group = tile // TILES_O % GROUPS
    place, image, at, valid = coordinates_of_tile(tile // (TILES_O * GROUPS), batch, extent, TILE, INDEX)
    start = window_start(at, STRIDE, PADDING)
    channel, in_channels = output_channels(group, block_o, OUT_CHANNELS, BLOCK_O, INDEX)
    source = x + image * x_image + (group * IN_CHANNELS).to(INDEX) * x_channel
    if UNROLLED:
        u, squares = gather_columns(source, w, start, valid, in_extent, x_channel, channel, in_channels, X_PIXEL,
                                    W_ORDER == "channels", IN_CHANNELS, KERNEL, PADDING, DILATION, TILE, BLOCK_O,
                                    BLOCK_K, PRECISION, INDEX)  # fmt: skip
    else:
        first, count = share_of(STEPS, split, splits, partial_u is None)
        u, squares = gather_steps(source, w, start, valid, in_extent, x_channel, w_output, w_channel, w_tap, channel,
                                  in_channels, first, count, SQUARES, X_PIXEL, IN_CHANNELS, KERNEL, PADDING, DILATION,
                                  TILE, BLOCK_O, BLOCK_K, PRECISION, INDEX)  # fmt: skip

    if SQUARES == "plane":
        in_pixels = in_extent[0] * in_extent[1] * in_extent[2]
        squares = patch_squares(plane + (image * GROUPS + group) * in_pixels, at, in_extent, valid, KERNEL, STRIDE,
                                PADDING, DILATION)  # fmt: skip
    pixels = extent[0] * extent[1] * extent[2]
    where = dense_places(place, pixels, OUT_CHANNELS * GROUPS, Y_INNERMOST)
    y_channel = 1 if Y_INNERMOST else pixels
    norm_where = place + (image * (GROUPS - 1) + group) * pixels
    write_tile(u, squares, y, quotient, norm, partial_u, partial_squares, bias, alpha, delta, place, where, norm_where,
               tl.cast(batch, tl.int64) * pixels, y_channel, channel, in_channels, valid, split, block_o, OUT_CHANNELS,
               GROUPS, RELU, SQUARES == "loop")  # fmt: skip


@triton.jit(do_not_specialize=["batch", "tiles_o"])
def forward_depthwise(
    x, w, y, quotient, norm, bias, alpha, delta,
    batch, in_extent, extent, x_image, x_channel, x_pixel, w_output, w_tap, y_image, y_channel, y_pixel, tiles_o,
    OUT_CHANNELS: tl.constexpr, GROUPS: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    TILE: tl.constexpr, BLOCK_O: tl.constexpr, RELU: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """One input channel a group, OUT_CHANNELS output channels each: every channel has a norm of its own."""
    tile = tl.program_id(0)
    pixels = extent[0] * extent[1] * extent[2]
    image, pixel, valid = place_of_tile(tile // tiles_o, batch, pixels, TILE, INDEX)
    channel = (tile % tiles_o * BLOCK_O + tl.arange(0, BLOCK_O)).to(INDEX)
    in_channels = channel < OUT_CHANNELS * GROUPS
    group = channel // OUT_CHANNELS

    u = tl.zeros((TILE, BLOCK_O), tl.float32)
    squares = tl.zeros((TILE, BLOCK_O), tl.float32)
    start = window_start(coordinates(pixel, extent), STRIDE, PADDING)
    source = (x + image * x_image)[:, None] + (group * x_channel)[None, :]
    for tap in range(KERNEL[0] * KERNEL[1] * KERNEL[2]):
        in_pixel, inside = source_pixel(start, tap, in_extent, KERNEL, PADDING, DILATION)
        mask = (inside & valid)[:, None] & in_channels[None, :]
        values = tl.load(source + (in_pixel * x_pixel)[:, None], mask=mask, other=0.0).to(tl.float32)
        weights = tl.load(w + channel * w_output + tap * w_tap, mask=in_channels, other=0.0).to(tl.float32)
        u += values * weights[None, :]
        squares += values * values

    r = tl.sqrt_rn(squares)
    mask = valid[:, None] & in_channels[None, :]
    write_output(u, reciprocal_divisor(r, delta), y, quotient, bias, alpha, image * y_image + pixel * y_pixel,
                 y_channel, channel, valid, in_channels, RELU)  # fmt: skip
    place = ((image * GROUPS) * pixels + pixel)[:, None] + (group * pixels)[None, :]
    tl.store(norm + place, r, mask=mask & (channel % OUT_CHANNELS == 0)[None, :])
