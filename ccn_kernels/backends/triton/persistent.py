"""The forward pass by programs that stay, for Hopper, in Gluon: a tile ends while the next one is multiplied.

A program has three parts. One warp, the producer, brings boxes of x and blocks of w by the tensor memory accelerator
into a ring of stages, and runs ahead across tiles. Two consumers of four warps take turns: one multiplies (wgmma, both
operands from shared memory) while the other divides and writes what it has multiplied.

Barriers, of one arrival each. Steps are numbered through all tiles of a program, and number n has stage n % STAGES:

- full[stage]: the producer has asked for x and w, and their bytes are there.
- empty[stage]: the consumer's products have read them. What a first use waits for is over from the start.
- turn[consumer]: the other consumer has issued the last step of its tile. Without it a consumer might take a phase of
  the other's tile for its own, two phases on: only their parity is seen.
- resident[step], if all of w stays in shared memory: it is there.

TALL tiles read less: the taps of one column of the kernel share a box, as many rows higher as they overlap. Rows are
its outermost axis, so that each tap's part of it is a matrix without gaps. A box then serves KERNEL[1] steps, and x and
w have rings, full and empty barriers of their own.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

# Triton 3.6 calls them by the names behind, 3.9 by those before.
load_box = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
store_box = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global

BUFFERS = gl.constexpr(2)  # of each consumer, for what it writes
EVENTS = gl.constexpr(4)  # of a tile, in a trace: its turn, the next one's, its products done, its copies issued
LATE = gl.constexpr(4)  # steps that hide the loads of the plane of squares
CONSUMER, PRODUCER = gl.constexpr(240), gl.constexpr(24)  # registers of a thread
TALL_CONSUMER, TALL_PRODUCER = gl.constexpr(224), gl.constexpr(56)  # loads are unrolled there


def swizzled(descriptor):
    """Triton's descriptor as Gluon takes it."""
    size = 8 * descriptor.base.dtype.itemsize
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=size, rank=len(descriptor.block_shape))
    return TensorDescriptor(descriptor.base, descriptor.shape, descriptor.strides, descriptor.block_shape, layout)


@gluon.jit
def wait_for_plane():
    """Until the launch before this one is done, and what it wrote is visible."""
    gl.inline_asm_elementwise("griddepcontrol.wait; // dummy $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def stamp(trace, tiles, ordinal, EVENT: gl.constexpr):
    """Notes the processor's clock, where a trace is asked for."""
    if trace is not None:
        clock = gl.inline_asm_elementwise("mov.u64 $0, %clock64;", "=l", [], dtype=gl.int64, is_pure=False, pack=1)
        tile = gl.program_id(0) * gl.cdiv(tiles, gl.num_programs(0)) + ordinal
        gl.store(trace + tile * EVENTS + EVENT, clock)


@gluon.jit
def box_position(box, tiles_h, tiles_w, BOX: gl.constexpr, TALL: gl.constexpr):
    """(image, row, column) of a box, by its number."""
    column = box % tiles_w * BOX[2]
    row = box // tiles_w % tiles_h * (BOX[0] if TALL else BOX[1])
    return box // (tiles_w * tiles_h) * (BOX[1] if TALL else BOX[0]), row, column


@gluon.jit
def position_in_box(place, BOX: gl.constexpr, TALL: gl.constexpr):
    """(image, row, column) of a place of a box, within it."""
    outer = place // (BOX[1] * BOX[2])
    inner = place // BOX[2] % BOX[1]
    column = place % BOX[2]
    return (inner, outer, column) if TALL else (outer, inner, column)


@gluon.jit
def advance(stage, phase, STAGES: gl.constexpr):
    last = stage == STAGES - 1
    return gl.where(last, 0, stage + 1), gl.where(last, phase ^ 1, phase)


@gluon.jit
def split_columns(u, PARTS: gl.constexpr):
    """A matrix in registers as a tuple of PARTS matrices."""
    if PARTS == 1:
        return (u,)
    else:
        left, right = u.reshape([u.shape[0], 2, u.shape[1] // 2]).permute(0, 2, 1).split()
        return split_columns(left, PARTS // 2) + split_columns(right, PARTS // 2)


@gluon.jit
def produce(x, w, rings, barriers, tiling, IN_CHANNELS: gl.constexpr, KERNEL: gl.constexpr, PADDING: gl.constexpr,
            DILATION: gl.constexpr, BOX: gl.constexpr, BLOCK_O: gl.constexpr, BLOCK_K: gl.constexpr,
            STAGES: gl.constexpr, BOXES: gl.constexpr, RESIDENT: gl.constexpr):  # fmt: skip
    """The producer: all steps of all tiles of the program."""
    BLOCKS: gl.constexpr = IN_CHANNELS // BLOCK_K
    STEPS: gl.constexpr = BLOCKS * KERNEL[1] * KERNEL[2]
    X_BYTES: gl.constexpr = BOX[0] * BOX[1] * BOX[2] * BLOCK_K * 2
    W_BYTES: gl.constexpr = BLOCK_O * BLOCK_K * 2
    x_ring, w_ring, _, _ = rings
    full, empty, resident, _, _ = barriers
    tiles, tiles_o, tiles_h, tiles_w = tiling
    stage = gl.to_tensor(0)
    phase = gl.to_tensor(0)
    first = gl.program_id(0)
    for tile in range(first, tiles, gl.num_programs(0)):
        output = tile % tiles_o * BLOCK_O
        image, row, column = box_position(tile // tiles_o, tiles_h, tiles_w, BOX, False)
        for step in range(STEPS):
            tap = step // BLOCKS
            k = step % BLOCKS * BLOCK_K
            down = tap // KERNEL[2] * DILATION[1] - PADDING[1]
            right = tap % KERNEL[2] * DILATION[2] - PADDING[2]
            barrier = full.index(stage)
            mbarrier.wait(empty.index(stage), phase ^ 1)
            if RESIDENT:
                once = tile == first
                mbarrier.expect(resident.index(step), W_BYTES, pred=once)
                load_box(w, [0, tap * IN_CHANNELS + k], resident.index(step), w_ring.index(step), pred=once)
                mbarrier.expect(barrier, X_BYTES)
            else:
                mbarrier.expect(barrier, X_BYTES + W_BYTES)
                load_box(w, [output, tap * IN_CHANNELS + k], barrier, w_ring.index(stage))
            load_box(x, [image, row + down, column + right, k], barrier, x_ring.index(stage))
            stage, phase = advance(stage, phase, STAGES)


@gluon.jit
def produce_tall(x, w, rings, barriers, tiling, IN_CHANNELS: gl.constexpr, KERNEL: gl.constexpr, PADDING: gl.constexpr,
                 DILATION: gl.constexpr, BOX: gl.constexpr, BLOCK_O: gl.constexpr, BLOCK_K: gl.constexpr,
                 STAGES: gl.constexpr, BOXES: gl.constexpr, RESIDENT: gl.constexpr):  # fmt: skip
    """The producer of tall tiles; x comes row by row, so that its boxes need not be powers of two high."""
    BLOCKS: gl.constexpr = IN_CHANNELS // BLOCK_K
    TAPS: gl.constexpr = KERNEL[1]
    ROWS: gl.constexpr = BOX[0] + (TAPS - 1) * DILATION[1]
    X_BYTES: gl.constexpr = ROWS * BOX[1] * BOX[2] * BLOCK_K * 2
    W_BYTES: gl.constexpr = BLOCK_O * BLOCK_K * 2
    x_ring, w_ring, _, _ = rings
    full, empty, w_full, w_empty, _ = barriers
    tiles, tiles_o, tiles_h, tiles_w = tiling
    stage = gl.to_tensor(0)
    phase = gl.to_tensor(0)
    w_stage = gl.to_tensor(0)
    w_phase = gl.to_tensor(0)
    first = gl.program_id(0)
    for tile in range(first, tiles, gl.num_programs(0)):
        output = tile % tiles_o * BLOCK_O
        image, row, column = box_position(tile // tiles_o, tiles_h, tiles_w, BOX, True)
        for group in range(BLOCKS * KERNEL[2]):
            right = group // BLOCKS
            k = group % BLOCKS * BLOCK_K
            barrier = full.index(stage)
            mbarrier.wait(empty.index(stage), phase ^ 1)
            mbarrier.expect(barrier, X_BYTES)
            for part in range(ROWS):
                at = [row + (part - PADDING[1]), image, column + right * DILATION[2] - PADDING[2], k]
                load_box(x, at, barrier, x_ring.index(stage * ROWS + part))
            stage, phase = advance(stage, phase, BOXES)
            for down in gl.static_range(TAPS):
                source = (down * KERNEL[2] + right) * IN_CHANNELS + k
                if RESIDENT:
                    step = group * TAPS + down
                    once = tile == first
                    mbarrier.expect(w_full.index(step), W_BYTES, pred=once)
                    load_box(w, [0, source], w_full.index(step), w_ring.index(step), pred=once)
                else:
                    mbarrier.wait(w_empty.index(w_stage), w_phase ^ 1)
                    mbarrier.expect(w_full.index(w_stage), W_BYTES)
                    load_box(w, [output, source], w_full.index(w_stage), w_ring.index(w_stage))
                    w_stage, w_phase = advance(w_stage, w_phase, STAGES)


@gluon.jit
def add_product(u, places, weights, is_sum, OUTPUTS_LEFT: gl.constexpr):
    """One step; returns when the product before it is done, and this one under way."""
    if OUTPUTS_LEFT:
        a, b = weights, places.permute([1, 0])
    else:
        a, b = places, weights.permute([1, 0])
    u = warpgroup_mma(a, b, u, use_acc=is_sum, is_async=True)
    u, a, b = warpgroup_mma_wait(1, deps=(u, a, b))
    return u


@gluon.jit
def multiply(u, first, previous, stage, phase, is_first_tile, rings, barriers, COUNT: gl.constexpr,
             IS_START: gl.constexpr, STAGES: gl.constexpr, RESIDENT: gl.constexpr,
             OUTPUTS_LEFT: gl.constexpr):  # fmt: skip
    """COUNT steps from step ``first``. The last product stays under way: its stage, ``previous``, is not released."""
    x_ring, w_ring, _, _ = rings
    full, empty, resident, _, _ = barriers
    for index in range(COUNT):
        step = first + index
        if RESIDENT:
            mbarrier.wait(resident.index(step), 0, pred=is_first_tile)
        mbarrier.wait(full.index(stage), phase)
        box = x_ring.index(stage)
        places = box.reshape([box.shape[0] * box.shape[1] * box.shape[2], box.shape[3]])
        weights = w_ring.index(step if RESIDENT else stage)
        u = add_product(u, places, weights, (index > 0) if IS_START else True, OUTPUTS_LEFT)
        mbarrier.arrive(empty.index(previous), pred=(index > 0) if IS_START else True)
        previous = stage
        stage, phase = advance(stage, phase, STAGES)
    return u, previous, stage, phase


@gluon.jit
def multiply_tall(u, first, previous, w_previous, stage, phase, w_stage, w_phase, is_first_tile, rings, barriers,
                  COUNT: gl.constexpr, IS_START: gl.constexpr, KERNEL: gl.constexpr, DILATION: gl.constexpr,
                  BOX: gl.constexpr, STAGES: gl.constexpr, BOXES: gl.constexpr, RESIDENT: gl.constexpr,
                  OUTPUTS_LEFT: gl.constexpr):  # fmt: skip
    """The steps of COUNT boxes of x from number ``first``; as ``multiply`` does, the last stages are not released."""
    x_ring, w_ring, _, _ = rings
    full, empty, w_full, w_empty, _ = barriers
    TAPS: gl.constexpr = KERNEL[1]
    ROWS: gl.constexpr = BOX[0] + (TAPS - 1) * DILATION[1]
    for index in range(COUNT):
        mbarrier.wait(full.index(stage), phase)
        for down in gl.static_range(TAPS):
            step = (first + index) * TAPS + down
            if RESIDENT:
                mbarrier.wait(w_full.index(step), 0, pred=is_first_tile)
            else:
                mbarrier.wait(w_full.index(w_stage), w_phase)
            row = x_ring.index(stage * ROWS + down * DILATION[1])  # those that the tap sees follow it in memory
            places = row._reinterpret(row.dtype, [BOX[0] * BOX[1] * BOX[2], row.shape[3]], w_ring.layout)
            is_sum = index > 0 if IS_START and down == 0 else True
            u = add_product(u, places, w_ring.index(step if RESIDENT else w_stage), is_sum, OUTPUTS_LEFT)
            if not RESIDENT:
                mbarrier.arrive(w_empty.index(w_previous), pred=is_sum)
                w_previous = w_stage
                w_stage, w_phase = advance(w_stage, w_phase, STAGES)
            if down == 0:
                mbarrier.arrive(empty.index(previous), pred=is_sum)
        previous = stage
        stage, phase = advance(stage, phase, BOXES)
    return u, previous, w_previous, stage, phase, w_stage, w_phase


@gluon.jit
def load_squares(plane, image, row, column, in_extent, valid, KERNEL: gl.constexpr, PADDING: gl.constexpr,
                 DILATION: gl.constexpr, INDEX: gl.constexpr):  # fmt: skip
    """What the plane of squares holds at each tap of each patch: a tuple, so that all loads are under way at once."""
    source = plane + image.to(INDEX) * (in_extent[1] * in_extent[2])
    loaded = ()
    for tap in gl.static_range(KERNEL[1] * KERNEL[2]):
        h = row + (tap // KERNEL[2] * DILATION[1] - PADDING[1])
        v = column + (tap % KERNEL[2] * DILATION[2] - PADDING[2])
        inside = valid & (h >= 0) & (h < in_extent[1]) & (v >= 0) & (v < in_extent[2])
        loaded += (gl.load(source + h * in_extent[2] + v, mask=inside, other=0.0),)  # type: ignore[assignment]
    return loaded


@gluon.jit
def sum_of(values):
    total = values[0]
    for index in gl.static_range(1, len(values)):
        total += values[index]
    return total


@gluon.jit
def write_box(values, descriptor, buffer, at, OUTPUTS_LEFT: gl.constexpr):
    """Through shared memory. The copy is waited for when its buffer, one of BUFFERS in turn, is needed again."""
    places: gl.constexpr = buffer.shape[0] * buffer.shape[1] * buffer.shape[2]
    rows = buffer.reshape([places, buffer.shape[3]])
    tma.store_wait(BUFFERS - 1)
    if OUTPUTS_LEFT:
        rows.permute([1, 0]).store(values.to(descriptor.dtype))
    else:
        rows.store(values.to(descriptor.dtype))
    fence_async_shared()
    store_box(descriptor, at, buffer)


@gluon.jit
def write_part(u, y, quotient, bias, scale, inverses, buffers, first_buffer, position, output, PART: gl.constexpr,
               BOX: gl.constexpr, OUT_CHANNELS: gl.constexpr, RELU: gl.constexpr, OUTPUTS_LEFT: gl.constexpr,
               TALL: gl.constexpr):  # fmt: skip
    """Columns of a product: division, scale, bias and ReLU. ``inverses`` [places of the tile]: 1 / divisor."""
    AXIS: gl.constexpr = 1 if OUTPUTS_LEFT else 0  # of the places
    PLACES: gl.constexpr = u.shape[AXIS]
    OUTPUTS: gl.constexpr = u.shape[1 - AXIS]
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, u.shape[1], 16])
    PLACE: gl.constexpr = PART * PLACES if OUTPUTS_LEFT else 0  # the first, of the tile's
    COPIES: gl.constexpr = 1 if quotient is None else 2
    first = output if OUTPUTS_LEFT else output + PART * OUTPUTS
    image, row, column = position_in_box(PLACE, BOX, TALL)
    image, row, column = position[0] + image, position[1] + row, position[2] + column
    at = [row, image, column, first] if TALL else [image, row, column, first]
    inverse = inverses.slice(PLACE, PLACES).load(gl.SliceLayout(1 - AXIS, LAYOUT))
    z = gl.convert_layout(u, LAYOUT, assert_trivial=True) * gl.expand_dims(inverse, 1 - AXIS)
    if quotient is not None:
        write_box(z, quotient, buffers.index(first_buffer + PART * COPIES % BUFFERS), at, OUTPUTS_LEFT)
    result = z * scale
    if bias is not None:
        channel = first + gl.arange(0, OUTPUTS, layout=gl.SliceLayout(AXIS, LAYOUT))
        b = gl.load(bias + channel, mask=channel < OUT_CHANNELS, other=0.0).to(gl.float32)
        result += gl.expand_dims(b, AXIS)
    if RELU:
        result = gl.where(result < 0, 0.0, result)  # NaN stays
    write_box(result, y, buffers.index(first_buffer + (PART * COPIES + COPIES - 1) % BUFFERS), at, OUTPUTS_LEFT)


@gluon.jit
def consume(y, quotient, norm, plane, bias, alpha, delta, trace, rings, barriers, tiling, batch, in_extent, extent,
            IN_CHANNELS: gl.constexpr, OUT_CHANNELS: gl.constexpr, KERNEL: gl.constexpr, PADDING: gl.constexpr,
            DILATION: gl.constexpr, BOX: gl.constexpr, BLOCK_O: gl.constexpr, BLOCK_K: gl.constexpr,
            STAGES: gl.constexpr, BOXES: gl.constexpr, RESIDENT: gl.constexpr, RELU: gl.constexpr,
            INDEX: gl.constexpr, WHO: gl.constexpr):  # fmt: skip
    """Consumer WHO: every other tile of the program."""
    TILE: gl.constexpr = BOX[0] * BOX[1] * BOX[2]
    STEPS: gl.constexpr = IN_CHANNELS // BLOCK_K * KERNEL[1] * KERNEL[2]
    LAST: gl.constexpr = LATE if LATE < STEPS else STEPS - 1
    TALL: gl.constexpr = BOXES > 0
    GROUPS: gl.constexpr = IN_CHANNELS // BLOCK_K * KERNEL[2]  # boxes of a tall tile
    OUTPUTS_LEFT: gl.constexpr = BLOCK_O < TILE  # fewer, wider instructions
    M: gl.constexpr = BLOCK_O if OUTPUTS_LEFT else TILE
    N: gl.constexpr = TILE if OUTPUTS_LEFT else BLOCK_O
    PARTS: gl.constexpr = TILE * BLOCK_O // y.block_type.numel
    LINE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    _, _, buffers, inverses = rings
    _, empty, _, w_empty, turn = barriers
    tiles, tiles_o, tiles_h, tiles_w = tiling

    line = inverses.index(WHO)
    scale = gl.load(alpha).to(gl.float32)
    place = gl.arange(0, TILE, layout=LINE)
    ordinal = gl.to_tensor(WHO)  # of the tile, among the program's
    for tile in range(gl.program_id(0) + WHO * gl.num_programs(0), tiles, 2 * gl.num_programs(0)):
        block_o = tile % tiles_o
        position = box_position(tile // tiles_o, tiles_h, tiles_w, BOX, TALL)
        image, row, column = position_in_box(place, BOX, TALL)
        image, row, column = position[0] + image, position[1] + row, position[2] + column
        valid = (image < batch) & (row < extent[1]) & (column < extent[2])

        # consumer 0 starts: its tile number i waits for arrival i - 1, consumer 1's for arrival i
        mbarrier.wait(turn.index(WHO), (ordinal // 2 & 1) ^ (1 - WHO))
        stamp(trace, tiles, ordinal, 0)
        u = gl.zeros([M, N], gl.float32, layout=gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16]))
        if TALL:
            stage = ordinal * GROUPS % BOXES
            phase = ordinal * GROUPS // BOXES & 1
            w_stage = ordinal * STEPS % STAGES
            w_phase = ordinal * STEPS // STAGES & 1
            u, previous, w_previous, stage, phase, w_stage, w_phase = multiply_tall(
                u, 0, stage, w_stage, stage, phase, w_stage, w_phase, ordinal < 2, rings, barriers, GROUPS - 1, True,
                KERNEL, DILATION, BOX, STAGES, BOXES, RESIDENT, OUTPUTS_LEFT)  # fmt: skip
        else:
            stage = ordinal * STEPS % STAGES
            phase = ordinal * STEPS // STAGES & 1
            u, previous, stage, phase = multiply(u, 0, stage, stage, phase, ordinal < 2, rings, barriers,
                                                 STEPS - LAST, True, STAGES, RESIDENT, OUTPUTS_LEFT)  # fmt: skip
        wait_for_plane()
        loaded = load_squares(plane, image, row, column, in_extent, valid, KERNEL, PADDING, DILATION, INDEX)
        if TALL:
            u, previous, w_previous, stage, phase, w_stage, w_phase = multiply_tall(
                u, GROUPS - 1, previous, w_previous, stage, phase, w_stage, w_phase, ordinal < 2, rings, barriers, 1,
                False, KERNEL, DILATION, BOX, STAGES, BOXES, RESIDENT, OUTPUTS_LEFT)  # fmt: skip
        else:
            u, previous, stage, phase = multiply(u, STEPS - LAST, previous, stage, phase, ordinal < 2, rings, barriers,
                                                 LAST, False, STAGES, RESIDENT, OUTPUTS_LEFT)  # fmt: skip
        mbarrier.arrive(turn.index(1 - WHO))
        stamp(trace, tiles, ordinal, 1)

        r = gl.sqrt_rn(sum_of(loaded))
        pixel = (image.to(INDEX) * extent[1] + row) * extent[2] + column
        gl.store(norm + pixel, r, mask=valid & (block_o == 0))
        divisor = r + delta
        line.store(gl.where(divisor == 0, 0.0, 1.0 / gl.where(divisor == 0, 1.0, divisor)))
        u = warpgroup_mma_wait(0, deps=(u,))
        stamp(trace, tiles, ordinal, 2)
        mbarrier.arrive(empty.index(previous))
        if TALL and not RESIDENT:
            mbarrier.arrive(w_empty.index(w_previous))
        parts = split_columns(u, PARTS)
        for part in gl.static_range(PARTS):
            write_part(parts[part], y, quotient, bias, scale, line, buffers, WHO * BUFFERS, position,
                       block_o * BLOCK_O, part, BOX, OUT_CHANNELS, RELU, OUTPUTS_LEFT, TALL)  # fmt: skip
        stamp(trace, tiles, ordinal, 3)
        ordinal += 2
    tma.store_wait(0)


@gluon.jit
def make_ring(descriptor, COUNT: gl.constexpr):
    shape: gl.constexpr = [COUNT] + descriptor.block_type.shape  # noqa: RUF005
    return gl.allocate_shared_memory(descriptor.dtype, shape, descriptor.layout)


@gluon.jit
def make_barriers(COUNT: gl.constexpr):
    barriers = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for index in gl.static_range(COUNT):
        mbarrier.init(barriers.index(index), count=1)
    return barriers


@gluon.jit(do_not_specialize=["batch", "tiles", "tiles_o", "tiles_h", "tiles_w"])
def forward_persistent(
    x, w, y, quotient, norm, plane, bias, alpha, delta, batch, in_extent, extent, tiles, tiles_o, tiles_h, tiles_w,
    trace, IN_CHANNELS: gl.constexpr, OUT_CHANNELS: gl.constexpr, KERNEL: gl.constexpr, PADDING: gl.constexpr,
    DILATION: gl.constexpr, BOX: gl.constexpr, BLOCK_O: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr,
    BOXES: gl.constexpr, RESIDENT: gl.constexpr, RELU: gl.constexpr, INDEX: gl.constexpr,
):  # fmt: skip
    """x: descriptor [N, H, W, C]; w: descriptor [O, taps * C]; y, quotient: descriptors [N, H, W, O] of parts of a tile
    (see limits.written_part); plane: squares of each pixel [N, pixels], by the launch before.

    trace: None, or clocks [programs, tiles of a program, EVENTS].

    A tile is a box of places by BLOCK_O outputs; the grid has as many programs as there are processors. RESIDENT: w is
    one block of outputs, and stays in shared memory. BOXES: of x in their ring, for tall tiles; their BOX is [rows,
    images, columns], their descriptors are [H, N, W, C] and [H, N, W, O], and x's box is one row.
    """
    STEPS: gl.constexpr = IN_CHANNELS // BLOCK_K * KERNEL[1] * KERNEL[2]
    W_BLOCKS: gl.constexpr = STEPS if RESIDENT else STAGES
    W_EMPTY: gl.constexpr = STAGES if BOXES > 0 and not RESIDENT else 1
    X_BOXES: gl.constexpr = BOXES if BOXES > 0 else STAGES
    X_RING: gl.constexpr = BOXES * (BOX[0] + (KERNEL[1] - 1) * DILATION[1]) if BOXES > 0 else STAGES
    gl.static_assert(STEPS > 1)
    LINES: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    inverses = gl.allocate_shared_memory(gl.float32, [2, BOX[0] * BOX[1] * BOX[2]], LINES)
    rings = (make_ring(x, X_RING), make_ring(w, W_BLOCKS), make_ring(y, 2 * BUFFERS), inverses)
    barriers = (make_barriers(X_BOXES), make_barriers(X_BOXES), make_barriers(W_BLOCKS), make_barriers(W_EMPTY),
                make_barriers(2))  # fmt: skip
    tiling = (tiles, tiles_o, tiles_h, tiles_w)
    fence_async_shared()

    # each argument in place: a tuple that is assigned to a name loses its constants
    gl.warp_specialize([
        (consume, (y, quotient, norm, plane, bias, alpha, delta, trace, rings, barriers, tiling, batch, in_extent,
                   extent, IN_CHANNELS, OUT_CHANNELS, KERNEL, PADDING, DILATION, BOX, BLOCK_O, BLOCK_K, STAGES, BOXES,
                   RESIDENT, RELU, INDEX, 0)),
        (consume, (y, quotient, norm, plane, bias, alpha, delta, trace, rings, barriers, tiling, batch, in_extent,
                   extent, IN_CHANNELS, OUT_CHANNELS, KERNEL, PADDING, DILATION, BOX, BLOCK_O, BLOCK_K, STAGES, BOXES,
                   RESIDENT, RELU, INDEX, 1)),
        (produce_tall if BOXES > 0 else produce,
         (x, w, rings, barriers, tiling, IN_CHANNELS, KERNEL, PADDING, DILATION, BOX, BLOCK_O, BLOCK_K, STAGES, BOXES,
          RESIDENT)),
    ], [4, 1], [TALL_CONSUMER if BOXES > 0 else CONSUMER, TALL_PRODUCER if BOXES > 0 else PRODUCER])  # fmt: skip
