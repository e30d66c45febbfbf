"""The passes around a convolution that another kernel, cuDNN's or a split of ours, has computed; and the prologue."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents

from .dgrad import undo_scale, write_input_gradient
from .fprop import output_channels
from .indexing import coordinates, once, patch_squares, place_of_tile, reciprocal_divisor, transposed_box, write_output

AHEAD = tl.constexpr(3)  # tiles that are on their way while one is at work


@triton.jit(do_not_specialize=["batch"])
def sum_of_squares(
    x, plane, batch, pixels, x_image, x_channel, x_pixel,
    IN_CHANNELS: tl.constexpr, GROUPS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, INDEX: tl.constexpr,
    OVERLAPPED: tl.constexpr,
):  # fmt: skip
    """plane [N, groups, pixels] fp32: squares summed over a group's channels."""
    if OVERLAPPED:
        gdc_launch_dependents()  # the convolution may start: it waits before it reads the plane
    group = tl.program_id(0) % GROUPS
    image, pixel, valid = place_of_tile(tl.program_id(0) // GROUPS, batch, pixels, TILE, INDEX)
    source = x + image * x_image + pixel * x_pixel + (group * IN_CHANNELS).to(INDEX) * x_channel
    partial = tl.zeros((TILE, BLOCK), tl.float32)
    for first in range(0, IN_CHANNELS, BLOCK):
        channel = (first + tl.arange(0, BLOCK)).to(INDEX)
        mask = valid[:, None] & (channel < IN_CHANNELS)[None, :]
        values = tl.load(source[:, None] + (channel * x_channel)[None, :], mask=mask, other=0.0).to(tl.float32)
        partial += values * values
    tl.store(plane + (image * GROUPS + group) * pixels + pixel, tl.sum(partial, 1), mask=valid)


@triton.jit(do_not_specialize=["batch", "splits", "u_split", "tiles_o"])
def forward_epilogue(
    u, squares, y, quotient, norm, bias, alpha, delta,
    batch, in_extent, extent, u_split, u_image, u_channel, u_pixel, y_image, y_channel, y_pixel, tiles_o, splits,
    OUT_CHANNELS: tl.constexpr, GROUPS: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    TILE: tl.constexpr, BLOCK_O: tl.constexpr, PLANE: tl.constexpr, RELU: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """y, quotient and norm from shares of u, and from shares of the squared norms or (PLANE) a plane of squares."""
    tile = tl.program_id(0)
    block_o = tile % tiles_o
    group = tile // tiles_o % GROUPS
    pixels = extent[0] * extent[1] * extent[2]
    image, pixel, valid = place_of_tile(tile // (tiles_o * GROUPS), batch, pixels, TILE, INDEX)
    channel, in_channels = output_channels(group, block_o, OUT_CHANNELS, BLOCK_O, INDEX)
    mask = valid[:, None] & in_channels[None, :]
    place = (image * GROUPS + group) * pixels + pixel

    source = u + (image * u_image + pixel * u_pixel)[:, None] + (channel * u_channel)[None, :]
    total = tl.zeros((TILE, BLOCK_O), tl.float32)
    for split in range(splits):
        total += tl.load(source + tl.cast(split, tl.int64) * u_split, mask=mask, other=0.0).to(tl.float32)
    if PLANE:
        in_pixels = in_extent[0] * in_extent[1] * in_extent[2]
        plane = squares + (image * GROUPS + group) * in_pixels
        sums = patch_squares(plane, coordinates(pixel, extent), in_extent, valid, KERNEL, STRIDE, PADDING, DILATION)
    else:
        sums = tl.zeros((TILE,), tl.float32)
        for split in range(splits):
            share = tl.cast(split, tl.int64) * batch * pixels * GROUPS
            sums += tl.load(squares + share + place, mask=valid, other=0.0)
    r = tl.sqrt_rn(sums)
    write_output(total, once(reciprocal_divisor(r, delta))[:, None], y, quotient, bias, alpha,
                 image * y_image + pixel * y_pixel, y_channel, channel, valid, in_channels, RELU)  # fmt: skip
    if block_o == 0:
        tl.store(norm + place, r, mask=valid)


@triton.jit
def open_gradient(g, y, where, y_where, mask):
    """The incoming gradient, 0 where a fused ReLU (y not None) is shut. [places, channels]"""
    gradient = tl.load(g + where, mask=mask, other=0.0).to(tl.float32)
    if y is not None:
        shut = tl.load(y + y_where, mask=mask, other=0.0) <= 0
        gradient = tl.where(shut, 0.0, gradient)
    return gradient


@triton.jit(do_not_specialize=["batch"])
def largest_error(
    g, y, norm, largest, delta, batch, pixels, g_image, g_channel, g_pixel, y_image, y_channel, y_pixel,
    OUT_CHANNELS: tl.constexpr, GROUPS: tl.constexpr, TILE: tl.constexpr, BLOCK_O: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """largest [programs]: each program's largest |e|, so that fp16 can be scaled before it overflows."""
    group = tl.program_id(0) % GROUPS
    image, pixel, valid = place_of_tile(tl.program_id(0) // GROUPS, batch, pixels, TILE, INDEX)
    inverse = reciprocal_divisor(
        tl.load(norm + (image * GROUPS + group) * pixels + pixel, mask=valid, other=1.0), delta
    )
    most = tl.zeros((TILE, BLOCK_O), tl.float32)
    for block in range((OUT_CHANNELS + BLOCK_O - 1) // BLOCK_O):
        channel, in_channels = output_channels(group, block, OUT_CHANNELS, BLOCK_O, INDEX)
        mask = valid[:, None] & in_channels[None, :]
        where = (image * g_image + pixel * g_pixel)[:, None] + (channel * g_channel)[None, :]
        y_where = (image * y_image + pixel * y_pixel)[:, None] + (channel * y_channel)[None, :]
        most = tl.maximum(most, tl.abs(open_gradient(g, y, where, y_where, mask) * inverse[:, None]))
    tl.store(largest + tl.program_id(0), tl.max(tl.max(most, 1), 0))


@triton.jit(do_not_specialize=["count"])
def error_scale(largest, scale, limit, count, TOP: tl.constexpr, BLOCK: tl.constexpr):
    """The power of two that brings the largest |e| to between half of TOP and TOP; of the limit, where that is less."""
    most = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, count, BLOCK):
        index = first + tl.arange(0, BLOCK)
        most = tl.maximum(most, tl.load(largest + index, mask=index < count, other=0.0))
    found = tl.max(most, 0)
    top = TOP
    if limit is not None:
        least = tl.load(limit)
        top = tl.where((least > 0) & (least < TOP), least, TOP)
    usable = (found > 0) & (found < float("inf"))
    exponent = tl.floor(tl.log2(top / tl.where(usable, found, top)))
    tl.store(scale, tl.exp2(tl.minimum(tl.maximum(exponent, -100.0), 100.0)))


@triton.jit(do_not_specialize=["batch", "each"])
def backward_prologue(
    g, y, quotient, norm, bias, alpha, scale, e, q, dbias, dalpha, delta,
    batch, pixels, each, g_image, g_channel, g_pixel, y_image, y_channel, y_pixel, e_image, e_channel, e_pixel,
    OUT_CHANNELS: tl.constexpr, GROUPS: tl.constexpr, TILE: tl.constexpr, BLOCK_O: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """One pass over g: e = g / d (times scale), q [N, groups, pixels], and each program's shares of sums.

    A program takes ``each`` tiles, one after the other: one, unless BLOCK_O holds all channels of a group.
    dbias [programs / groups, O]: sums of g; dalpha [programs]: sums of g u / d. What is None is not wanted.
    ``quotient``, where there is one, lies as y does; without it, y under the fused ReLU stands in for
    alpha u / d + bias.
    """
    program = tl.program_id(0)
    group, share = program % GROUPS, program // GROUPS
    BLOCKS: tl.constexpr = (OUT_CHANNELS + BLOCK_O - 1) // BLOCK_O
    sums = tl.zeros((TILE, BLOCK_O), tl.float32)
    moments = tl.zeros((TILE,), tl.float32)
    for index in tl.range(each, num_stages=AHEAD):
        image, pixel, valid = place_of_tile(share * each + index, batch, pixels, TILE, INDEX)
        place = (image * GROUPS + group) * pixels + pixel
        r = tl.load(norm + place, mask=valid, other=1.0)
        inverse = reciprocal_divisor(r, delta)
        factor = inverse
        if scale is not None:
            factor = inverse * tl.load(scale)
        partial = tl.zeros((TILE, BLOCK_O), tl.float32)
        for block in range(BLOCKS):
            channel, in_channels = output_channels(group, block, OUT_CHANNELS, BLOCK_O, INDEX)
            mask = valid[:, None] & in_channels[None, :]
            where = (image * g_image + pixel * g_pixel)[:, None] + (channel * g_channel)[None, :]
            y_where = (image * y_image + pixel * y_pixel)[:, None] + (channel * y_channel)[None, :]
            gradient = open_gradient(g, y, where, y_where, mask)
            if e is not None:
                e_where = (image * e_image + pixel * e_pixel)[:, None] + (channel * e_channel)[None, :]
                tl.store(e + e_where, (gradient * factor[:, None]).to(e.dtype.element_ty), mask=mask)
            if dbias is not None:
                if BLOCKS == 1:
                    sums += gradient
                else:
                    row = dbias + share.to(tl.int64) * (OUT_CHANNELS * GROUPS)
                    tl.store(row + channel, tl.sum(gradient, 0), mask=in_channels)
            if quotient is not None:
                partial += gradient * tl.load(quotient + y_where, mask=mask, other=0.0).to(tl.float32)
            elif q is not None:
                shifted = tl.load(y + y_where, mask=mask, other=0.0).to(tl.float32)
                if bias is not None:
                    shifted -= tl.load(bias + channel, mask=in_channels, other=0.0).to(tl.float32)[None, :]
                partial += gradient * shifted
        moment = tl.sum(partial, 1)
        moments += moment
        if q is not None:
            if quotient is not None:
                moment = moment * tl.load(alpha).to(tl.float32)
            tl.store(q + place, tl.where(r == 0, 0.0, moment * inverse / tl.where(r == 0, 1.0, r)), mask=valid)
    if dalpha is not None:
        tl.store(dalpha + program, tl.sum(moments, 0))
    if dbias is not None and BLOCKS == 1:
        channel, in_channels = output_channels(group, 0, OUT_CHANNELS, BLOCK_O, INDEX)
        row = dbias + share.to(tl.int64) * (OUT_CHANNELS * GROUPS)
        tl.store(row + channel, tl.sum(sums, 0), mask=in_channels)


@triton.jit
def add_shares(program, shares, result, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """COLUMNS of result [columns]: the sums of shares [rows, columns], in a fixed order."""
    column = program * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        where = row.to(tl.int64)[:, None] * columns + column[None, :]
        sums += tl.load(shares + where, mask=(row < rows)[:, None] & inside[None, :], other=0.0)
    tl.store(result + column, tl.sum(sums, 0).to(result.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def sum_shares(shares, result, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A program for every COLUMNS of the result."""
    add_shares(tl.program_id(0), shares, result, rows, columns, ROWS, COLUMNS)


@triton.jit(do_not_specialize=["batch", "tiles_c", "splits", "conv_split"])
def input_epilogue(
    conv, x, q, dx, alpha, scale,
    batch, in_extent, extent, splits, conv_split, conv_image, conv_channel, conv_pixel, x_image, x_channel, x_pixel,
    dx_image, dx_channel, dx_pixel, tiles_c,
    IN_CHANNELS: tl.constexpr, GROUPS: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    TILE: tl.constexpr, BLOCK_C: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """dx = alpha * conv - x * box^T(q), the shares of conv adding up to dgrad(e, W)."""
    tile = tl.program_id(0)
    block_c = tile % tiles_c
    group = tile // tiles_c % GROUPS
    pixels = in_extent[0] * in_extent[1] * in_extent[2]
    image, pixel, valid = place_of_tile(tile // (tiles_c * GROUPS), batch, pixels, TILE, INDEX)
    channel, in_channels = output_channels(group, block_c, IN_CHANNELS, BLOCK_C, INDEX)
    mask = valid[:, None] & in_channels[None, :]
    out_pixels = extent[0] * extent[1] * extent[2]
    plane = q + (image * GROUPS + group) * out_pixels
    box = transposed_box(plane, coordinates(pixel, in_extent), extent, valid, KERNEL, STRIDE, PADDING, DILATION)
    where = (image * conv_image + pixel * conv_pixel)[:, None] + (channel * conv_channel)[None, :]
    values = tl.zeros((TILE, BLOCK_C), tl.float32)
    for split in range(splits):
        values += tl.load(conv + tl.cast(split, tl.int64) * conv_split + where, mask=mask, other=0.0).to(tl.float32)
    x_where = (image * x_image + pixel * x_pixel)[:, None] + (channel * x_channel)[None, :]
    dx_where = (image * dx_image + pixel * dx_pixel)[:, None] + (channel * dx_channel)[None, :]
    write_input_gradient(values, box, x, dx, undo_scale(alpha, scale), x_where, dx_where, mask)
