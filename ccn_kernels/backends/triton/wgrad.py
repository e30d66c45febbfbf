"""The weight's gradient: e^T x a tap, K (the places) split into shares that are added in a fixed order.

The reduction also scales by alpha, narrows, and forms the gradient of alpha, <W, dW / alpha>.
"""

import triton
import triton.language as tl

from .dgrad import undo_scale
from .epilogue import add_shares
from .fprop import load_box, share_of, tile_position
from .indexing import coordinates_of_tile, dense_places, patch_matrix, source_pixel, window_source, window_start


@triton.jit(do_not_specialize=["tiles", "tiles_h", "tiles_w", "splits"])
def wgrad_descriptor(
    e, x, partial, tiles, tiles_h, tiles_w, tiles_o, tiles_c, splits,
    IN_CHANNELS: tl.constexpr, OUT_CHANNELS: tl.constexpr, GROUPS: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    BOX: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, LINEAR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """e, x: descriptors (x as load_box reads it); partial [splits, O, taps, C] fp32. One tap a program.

    LINEAR: the boxes follow each other in memory, so e is a matrix [places, O]: without a change of shape, the tensor
    cores take it from shared memory. Else it goes through registers, which must not be filled anew before a product
    is done: it is waited for, since its result is used.
    """
    TAPS: tl.constexpr = KERNEL[1] * KERNEL[2]
    TILE: tl.constexpr = BOX[0] * BOX[1] * BOX[2]
    program, split = tl.program_id(0), tl.program_id(1)
    block_c = program % tiles_c
    block_o = program // tiles_c % tiles_o
    tap = program // (tiles_c * tiles_o) % TAPS
    group = program // (tiles_c * tiles_o * TAPS)

    gradient = tl.zeros((BLOCK_O, BLOCK_C), tl.float32)
    first, count = share_of(tiles, split, splits, False)
    for index in range(count):
        position = tile_position(first + index, tiles_h, tiles_w, BOX)
        output = group * OUT_CHANNELS + block_o * BLOCK_O
        if LINEAR:
            errors = e.load([(first + index) * TILE, output])
        else:
            errors = tl.reshape(e.load([position[0], position[1], position[2], output]), (TILE, BLOCK_O))
        values = load_box(x, position, group * IN_CHANNELS + block_c * BLOCK_C, tap, KERNEL, STRIDE, PADDING, DILATION,
                          IN_CHANNELS * GROUPS, BOX, BLOCK_C)  # fmt: skip
        gradient = tl.dot(tl.trans(errors), values, gradient, input_precision=PRECISION)
        if not LINEAR:
            gradient *= tl.where(splits > 0, 1.0, 0.0)  # 1, as the compiler cannot know

    output = block_o * BLOCK_O + tl.arange(0, BLOCK_O)
    channel = block_c * BLOCK_C + tl.arange(0, BLOCK_C)
    row = ((split * GROUPS + group) * OUT_CHANNELS + output).to(tl.int64)
    where = ((row * TAPS + tap) * IN_CHANNELS)[:, None] + channel[None, :]
    mask = (output < OUT_CHANNELS)[:, None] & (channel < IN_CHANNELS)[None, :]
    tl.store(partial + where, gradient, mask=mask)


@triton.jit(do_not_specialize=["batch", "splits"])
def wgrad_gather(
    e, x, partial, batch, in_extent, extent, x_image, x_channel, tiles_o, tiles_k, splits,
    IN_CHANNELS: tl.constexpr, OUT_CHANNELS: tl.constexpr, GROUPS: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    TILE: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr, X_PIXEL: tl.constexpr, E_INNERMOST: tl.constexpr,
    PRECISION: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """x by its strides; e has no gaps. Columns run over taps, then the group's input channels.

    E_INNERMOST: whether e's channels lie side by side.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    program, split = tl.program_id(0), tl.program_id(1)
    block_k = program % tiles_k
    block_o = program // tiles_k % tiles_o
    group = program // (tiles_k * tiles_o)
    column = block_k * BLOCK_K + tl.arange(0, BLOCK_K)
    tap, channel = column // IN_CHANNELS, column % IN_CHANNELS
    output = block_o * BLOCK_O + tl.arange(0, BLOCK_O)
    pixels = extent[0] * extent[1] * extent[2]
    tiles = (batch.to(INDEX) * pixels + TILE - 1) // TILE
    sources = x + (group * IN_CHANNELS + channel).to(INDEX) * x_channel
    errors = e + (group * OUT_CHANNELS + output).to(INDEX) * (1 if E_INNERMOST else pixels)

    gradient = tl.zeros((BLOCK_O, BLOCK_K), tl.float32)
    first, count = share_of(tiles, split, splits, False)
    for index in range(count):
        place, image, at, valid = coordinates_of_tile(first + index, batch, extent, TILE, INDEX)
        start = window_start(at, STRIDE, PADDING)
        if TAPS * IN_CHANNELS <= BLOCK_K and IN_CHANNELS % 8 != 0:  # else neighbours are loaded at once
            source = x + image * x_image + (group * IN_CHANNELS).to(INDEX) * x_channel
            values, _ = patch_matrix(window_source(source, start, in_extent, X_PIXEL), start, valid, in_extent,
                                     x_channel, X_PIXEL, 0, BLOCK_K, IN_CHANNELS, KERNEL, PADDING, DILATION, False,
                                     INDEX)  # fmt: skip
        else:
            windows = (start[0][:, None], start[1][:, None], start[2][:, None])
            in_pixel, inside = source_pixel(windows, tap[None, :], in_extent, KERNEL, PADDING, DILATION)
            values = tl.load(sources[None, :] + ((image * x_image)[:, None] + in_pixel * X_PIXEL),
                             mask=inside & valid[:, None] & (tap < TAPS)[None, :], other=0.0)  # fmt: skip
        where = dense_places(place, pixels, OUT_CHANNELS * GROUPS, E_INNERMOST)
        error = tl.load(errors[None, :] + where[:, None],
                        mask=valid[:, None] & (output < OUT_CHANNELS)[None, :], other=0.0)  # fmt: skip
        gradient = tl.dot(tl.trans(error), values, gradient, input_precision=PRECISION)

    row = ((split * GROUPS + group) * OUT_CHANNELS + output).to(tl.int64)
    where = (row * (TAPS * IN_CHANNELS))[:, None] + column[None, :]
    mask = (output < OUT_CHANNELS)[:, None] & (column < TAPS * IN_CHANNELS)[None, :]
    tl.store(partial + where, gradient, mask=mask)


@triton.jit
def reduce_weight(
    program, partial, w, dw, dalpha, alpha, scale, count, splits, partial_split, partial_output, partial_channel,
    partial_tap, w_output, w_channel, w_tap, dw_output, dw_channel, dw_tap,
    IN_CHANNELS: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """dW = alpha * (sum of the shares), count elements; dalpha [programs]: each program's part of <W, dW / alpha>."""
    index = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    channel, tap, output = index % IN_CHANNELS, index // IN_CHANNELS % TAPS, index // (IN_CHANNELS * TAPS)
    source = partial + output * partial_output + channel * partial_channel + tap * partial_tap
    sums = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(0, splits, ROWS):
        split = first + tl.arange(0, ROWS)
        sums += tl.load(source[None, :] + (split.to(tl.int64) * partial_split)[:, None],
                        mask=mask[None, :] & (split < splits)[:, None], other=0.0).to(tl.float32)  # fmt: skip
    total = tl.sum(sums, 0)
    result = total * undo_scale(alpha, scale)
    where = output * dw_output + channel * dw_channel + tap * dw_tap
    tl.store(dw + where, result.to(dw.dtype.element_ty), mask=mask)
    if dalpha is not None:
        where = output * w_output + channel * w_channel + tap * w_tap
        weight = tl.load(w + where, mask=mask, other=0.0).to(tl.float32)
        if scale is not None:
            total = total / tl.load(scale)
        tl.store(dalpha + program, tl.sum(weight * total, 0))


@triton.jit(do_not_specialize=["splits", "biases_rows"])
def wgrad_reduce(
    partial, w, dw, dalpha, alpha, scale, count, splits, partial_split, partial_output, partial_channel, partial_tap,
    w_output, w_channel, w_tap, dw_output, dw_channel, dw_tap, biases, dbias, biases_rows, biases_columns,
    IN_CHANNELS: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    BIAS_ROWS: tl.constexpr, BIAS_COLUMNS: tl.constexpr,
):  # fmt: skip
    """The weight's gradient and alpha's; the first programs add up the bias's, where it is wanted.

    ROWS, BIAS_ROWS: shares that are read at a time.
    """
    program = tl.program_id(0)
    before = 0
    if biases is not None:
        before = (biases_columns + BIAS_COLUMNS - 1) // BIAS_COLUMNS
    if program >= before:
        reduce_weight(program - before, partial, w, dw, dalpha, alpha, scale, count, splits, partial_split,
                      partial_output, partial_channel, partial_tap, w_output, w_channel, w_tap, dw_output, dw_channel,
                      dw_tap, IN_CHANNELS, TAPS, BLOCK, ROWS)  # fmt: skip
    elif biases is not None:
        add_shares(program, biases, dbias, biases_rows, biases_columns, BIAS_ROWS, BIAS_COLUMNS)
