"""The input's gradient in one kernel: the transposed convolution of e, and the norm's term in its epilogue.

dx = alpha * dgrad(e, W) - x * box^T(q), as in fprop.py by descriptors (stride 1) or by pointers (any stride).
"""

import triton
import triton.language as tl

from .fprop import box_places, load_box, multiply, output_channels, share_of, tile_position
from .indexing import coordinates, once, place_of_tile, seeing_pixel, transposed_box


@triton.jit
def write_input_gradient(conv, box, x, dx, factor, x_where, dx_where, mask):
    """conv [places, channels] with box [places]; the factor is alpha, undoing the scale of e."""
    values = tl.load(x + x_where, mask=mask, other=0.0).to(tl.float32)
    gradient = conv * factor - values * once(box)[:, None]
    tl.store(dx + dx_where, gradient.to(dx.dtype.element_ty), mask=mask)


@triton.jit
def undo_scale(alpha, scale):
    """alpha / scale: what gradients from the scaled e are multiplied with."""
    factor = tl.load(alpha).to(tl.float32)
    if scale is not None:
        factor = factor / tl.load(scale)
    return factor


@triton.jit(do_not_specialize=["batch", "tiles_c", "tiles_h", "tiles_w", "splits"])
def dgrad_descriptor(
    e, w, x, q, dx, partial, alpha, scale,
    batch, in_extent, extent, x_image, x_channel, x_pixel, dx_image, dx_channel, dx_pixel, tiles_h, tiles_w, tiles_c,
    splits,
    IN_CHANNELS: tl.constexpr, OUT_CHANNELS: tl.constexpr, GROUPS: tl.constexpr,
    KERNEL: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    BOX: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
    REPACKED: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """e: descriptor [N, H, W, O]; w: descriptor [O, taps * C], or [C, taps * O] if REPACKED (TF32 wants K innermost).

    Where K is split, each split's share goes to partial [splits, N * pixels, C], fp32, for epilogue.input_epilogue.
    """
    TILE: tl.constexpr = BOX[0] * BOX[1] * BOX[2]
    TAPS: tl.constexpr = KERNEL[1] * KERNEL[2]
    BLOCKS: tl.constexpr = (OUT_CHANNELS + BLOCK_K - 1) // BLOCK_K
    # the window of outputs that see an input pixel, mirrored
    MIRRORED: tl.constexpr = (0, DILATION[1] * (KERNEL[1] - 1) - PADDING[1], DILATION[2] * (KERNEL[2] - 1) - PADDING[2])
    tile, split = tl.program_id(0), tl.program_id(1)
    block_c = tile % tiles_c
    group = tile // tiles_c % GROUPS
    position = tile_position(tile // (tiles_c * GROUPS), tiles_h, tiles_w, BOX)
    first_channel = group * IN_CHANNELS + block_c * BLOCK_C

    conv = tl.zeros((BLOCK_C, TILE), tl.float32)
    first, count = share_of(BLOCKS * TAPS, split, splits, partial is None)
    for index in range(count):
        step = first + index
        tap = step // BLOCKS
        k = step % BLOCKS * BLOCK_K + group * OUT_CHANNELS
        values = load_box(e, position, k, tap, KERNEL, (1, 1, 1), MIRRORED, DILATION, OUT_CHANNELS * GROUPS, BOX,
                          BLOCK_K)  # fmt: skip
        if REPACKED:
            weights = w.load([first_channel, (TAPS - 1 - tap) * OUT_CHANNELS + step % BLOCKS * BLOCK_K])
        else:
            weights = tl.trans(w.load([k, (TAPS - 1 - tap) * IN_CHANNELS + block_c * BLOCK_C]))
        conv = multiply(conv, values, weights, PRECISION)
    conv = tl.trans(conv)

    image, row, column = box_places(position, BOX, 0, 1)
    valid = (image < batch) & (row < in_extent[1]) & (column < in_extent[2])
    image = image.to(INDEX)
    pixel = (row * in_extent[2] + column).to(INDEX)
    channel, in_channels = output_channels(group, block_c, IN_CHANNELS, BLOCK_C, INDEX)
    mask = valid[:, None] & in_channels[None, :]
    if partial is None:
        at = (tl.zeros_like(row), row, column)
        box = transposed_box(q + (image * GROUPS + group) * (extent[1] * extent[2]), at, extent, valid, KERNEL,
                             (1, 1, 1), PADDING, DILATION)  # fmt: skip
        x_where = (image * x_image + pixel * x_pixel)[:, None] + (channel * x_channel)[None, :]
        dx_where = (image * dx_image + pixel * dx_pixel)[:, None] + (channel * dx_channel)[None, :]
        write_input_gradient(conv, box, x, dx, undo_scale(alpha, scale), x_where, dx_where, mask)
    else:
        pixels = in_extent[1] * in_extent[2]
        place = tl.cast(split, tl.int64) * batch * pixels + image * pixels + pixel
        tl.store(partial + place[:, None] * (IN_CHANNELS * GROUPS) + channel[None, :], conv, mask=mask)


@triton.jit(do_not_specialize=["batch", "tiles_c"])
def dgrad_gather(
    e, w, x, q, dx, alpha, scale,
    batch, in_extent, extent, e_image, e_channel, e_pixel, w_output, w_channel, w_tap, x_image, x_channel, x_pixel,
    dx_image, dx_channel, dx_pixel, tiles_c,
    IN_CHANNELS: tl.constexpr, OUT_CHANNELS: tl.constexpr, GROUPS: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    TILE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """e, w, x, dx by their strides; K runs over taps, then the group's output channels."""
    tile = tl.program_id(0)
    block_c = tile % tiles_c
    group = tile // tiles_c % GROUPS
    pixels = in_extent[0] * in_extent[1] * in_extent[2]
    image, pixel, valid = place_of_tile(tile // (tiles_c * GROUPS), batch, pixels, TILE, INDEX)
    at = coordinates(pixel, in_extent)
    columns = (at[0][:, None], at[1][:, None], at[2][:, None])
    within = block_c * BLOCK_C + tl.arange(0, BLOCK_C)  # the channel within the group
    channel, in_channels = output_channels(group, block_c, IN_CHANNELS, BLOCK_C, INDEX)

    conv = tl.zeros((BLOCK_C, TILE), tl.float32)
    source = e + image * e_image + (group * OUT_CHANNELS).to(INDEX) * e_channel
    weight = w + (group * OUT_CHANNELS).to(INDEX) * w_output + within.to(INDEX) * w_channel
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    for step in range((TAPS * OUT_CHANNELS + BLOCK_K - 1) // BLOCK_K):
        flat = step * BLOCK_K + tl.arange(0, BLOCK_K)
        tap, k = flat // OUT_CHANNELS, flat % OUT_CHANNELS
        out_pixel, seen = seeing_pixel(columns, tap[None, :], extent, KERNEL, STRIDE, PADDING, DILATION)
        real = tap < TAPS
        values = tl.load(source[:, None] + (out_pixel * e_pixel + (k.to(INDEX) * e_channel)[None, :]),
                         mask=seen & valid[:, None] & real[None, :], other=0.0)  # fmt: skip
        weights = tl.load(weight[:, None] + (k.to(INDEX) * w_output + tap * w_tap)[None, :],
                          mask=in_channels[:, None] & real[None, :], other=0.0)  # fmt: skip
        conv = multiply(conv, values, weights, PRECISION)
    conv = tl.trans(conv)

    out_pixels = extent[0] * extent[1] * extent[2]
    box = transposed_box(q + (image * GROUPS + group) * out_pixels, at, extent, valid, KERNEL, STRIDE, PADDING,
                         DILATION)  # fmt: skip
    x_where = (image * x_image + pixel * x_pixel)[:, None] + (channel * x_channel)[None, :]
    dx_where = (image * dx_image + pixel * dx_pixel)[:, None] + (channel * dx_channel)[None, :]
    write_input_gradient(conv, box, x, dx, undo_scale(alpha, scale), x_where, dx_where,
                         valid[:, None] & in_channels[None, :])  # fmt: skip
