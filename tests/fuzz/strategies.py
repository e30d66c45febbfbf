"""Valid calls of every kind, as Hypothesis strategies. See :class:`cases.Case`."""

import math

import oracle
import torch
from cases import OPERANDS, Case, Layout
from hypothesis import strategies as st

BATCHES = (2, 1, 3, 4, 5, 0)
CHANNELS = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 24, 31, 32, 33, 48, 64)
GROUPS = (1, 1, 1, 2, 3, 5)
MODES = ("zeros", "zeros", "zeros", "reflect", "replicate", "circular")
SHARES = (0.0, 0.0, 0.0, 0.3, 0.9, 1.0)
KERNELS = {1: 9, 2: 5, 3: 3}  # the largest of each rank
EXTENTS = {1: 70, 2: 34, 3: 9}  # of outputs
HALF_SCALES = (1.0, 1e-3, 1e2, 1e-6, 1e4)  # of inputs in fp16
DELTAS = (0.01, 0.0, 1.0, 100.0, 1e-6)  # the last not in fp16, which cannot hold g / r beside a zero patch's g / delta
WIDE_SCALES = (1.0, 1e-14, 1e-8, 1e-3, 1e3, 1e8, 1e14)


def layouts(axes, expandable=True):
    """As made, channels last, or anything else that strides can say."""
    order, once, none = tuple(range(axes)), (1,) * axes, (False,) * axes
    plain = Layout(order, once, (0,) * axes, none)
    last = Layout((0, *order[2:], 1) if axes > 1 else order, once, (0,) * axes, none)
    repeats = (False, False, False, True) if expandable else (False,)
    strided = st.builds(
        Layout,
        st.sampled_from([plain.order, last.order]) | st.permutations(order).map(tuple),
        st.tuples(*[st.sampled_from((1, 1, 2, 3))] * axes),
        st.tuples(*[st.sampled_from((0, 0, 1, 3))] * axes),
        st.tuples(*[st.sampled_from(repeats)] * axes),
    )
    return st.sampled_from([plain, last]) | strided


def subsets(names):
    return st.just(tuple(names)) | st.lists(st.booleans(), min_size=len(names), max_size=len(names)).map(
        lambda kept: tuple(name for name, keep in zip(names, kept, strict=True) if keep)
    )


def either(draw, values):
    """One int where all axes have the same, if so drawn."""
    return values[0] if len(set(values)) == 1 and draw(st.booleans()) else tuple(values)


@st.composite
def channels(draw, rank):
    """Groups, and the channels of each; depthwise among them."""
    some = st.sampled_from(CHANNELS if rank < 3 else CHANNELS[:10])
    kind = draw(st.sampled_from(("grouped", "grouped", "depthwise"))) if rank else "linear"
    if kind == "depthwise":
        return draw(some), (1, draw(st.sampled_from((1, 1, 2))))
    groups = draw(st.sampled_from(GROUPS)) if kind == "grouped" else 1
    return groups, (draw(some), draw(some))


@st.composite
def paddings(draw, rank, kernel, stride):
    """What is written, and the amounts before and behind each axis."""
    amounts = st.tuples(*(st.integers(0, taps + 1) for taps in kernel))
    usual = st.just(tuple(taps // 2 for taps in kernel))
    named = st.sampled_from(("valid", "same")) if set(stride) <= {1} else st.just("valid")
    padding = draw(usual | amounts | named)
    return padding if isinstance(padding, str) else either(draw, padding)


@st.composite
def windows(draw, rank, room):
    """Kernel, stride, padding, dilation and their mode, and a size that gives at most ``room`` outputs."""
    taps = st.integers(1, KERNELS[rank])
    kernel = draw(st.sampled_from([(3,) * rank, (1,) * rank]) | st.tuples(*[taps] * rank))
    steps = st.tuples(*[st.integers(1, 4)] * rank)
    stride, dilation = draw(st.just((1,) * rank) | steps), draw(st.just((1,) * rank) | steps)
    padding = draw(paddings(rank, kernel, stride))
    mode = draw(st.sampled_from(MODES))
    room = max(1, room // math.prod(kernel))
    size = []
    for axis, (before, behind) in reversed(list(enumerate(oracle.padding_amounts(padding, kernel, dilation)))):
        out = draw(st.integers(1, max(1, min(EXTENTS[rank], room))))
        room //= out
        rest = draw(st.integers(0, stride[axis] - 1))
        least = 1 if mode == "zeros" else max(before, behind) + 1
        span = dilation[axis] * (kernel[axis] - 1) + 1
        size.insert(0, max(least, (out - 1) * stride[axis] + span + rest - before - behind))
    geometry = {"stride": either(draw, stride), "padding": padding, "dilation": either(draw, dilation)}
    return {"size": tuple(size), "kernel": kernel, "padding_mode": mode, **geometry}


NO_WINDOW = {"size": (), "kernel": (), "padding_mode": "zeros", "stride": 1, "padding": 0, "dilation": 1}


@st.composite
def all_layouts(draw, axes):
    """Of input, weight, bias and incoming gradient. One repeats numbers at most: of sums of one term alone, repeated,
    every rounding may go the same way, and what explains an error does not count with that."""
    expandable = draw(st.integers(0, 3))
    return tuple(draw(layouts(n, index == expandable)) for index, n in enumerate((axes, axes, 1, axes)))


@st.composite
def cases(draw, dtypes, budget):
    """``budget``: the most numbers in all patches together, more or less."""
    rank = draw(st.sampled_from((2, 2, 2, 1, 3, 0)))
    groups, counts = draw(channels(rank))
    batch = draw(st.sampled_from(BATCHES))
    leading = draw(st.sampled_from([(batch,), (batch,), (batch,), ()] + ([(2, batch)] if rank == 0 else [])))
    room = budget // (max(1, batch) * groups * max(counts))
    window = draw(windows(rank, room)) if rank else NO_WINDOW
    dtype, bias = draw(st.sampled_from(dtypes)), draw(st.booleans())
    learned = draw(subsets([name for name in OPERANDS if bias or name != "bias"]))
    return Case(
        seed=draw(st.integers(0, 2**32 - 1)),
        rank=rank,
        dtype=dtype,
        leading=leading,
        groups=groups,
        channels=counts,
        layouts=draw(all_layouts(2 + rank)),
        bias=bias,
        relu=draw(st.booleans()),
        delta=draw(st.sampled_from(DELTAS[:-1] if dtype == torch.float16 else DELTAS)),
        alpha=draw(st.sampled_from((1.0, 1.7, -1.3, 0.0, 10.0))),
        scale=draw(st.sampled_from(HALF_SCALES if dtype == torch.float16 else WIDE_SCALES)),
        weight_scale=draw(st.sampled_from((1.0, 0.01, 10.0))),
        zeros=draw(st.tuples(*[st.sampled_from(SHARES)] * 3)),
        learned=learned,
        asked=draw(subsets(learned)),
        layer=window["padding_mode"] != "zeros" or draw(st.booleans()),
        **window,
    )
