"""Bad calls, as Hypothesis strategies: a good one with one thing or two of it broken."""

from dataclasses import dataclass, field, replace

import torch
from hypothesis import strategies as st

OPERANDS = ("input", "weight", "bias")
INTS = ("stride", "padding", "dilation", "groups")
NO_INT = (None, 1.5, 1.0, "2", "x", {}, {2}, 1j, True, range(1, 2), [[1]], [None], (1.5,), object, 2**63, [-(2**70)])
NO_TENSOR = (None, 1.0, "x", [1.0], (), torch.float32, object)
NO_FLOAT = (torch.int64, torch.int8, torch.bool, torch.complex64, torch.complex128, torch.float8_e4m3fn)
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


STORAGES = {
    "plain": lambda t: t,
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.float().to_sparse(),
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "nested": lambda t: torch.nested.nested_tensor([t.float()] * 2),
}


@dataclass(frozen=True)
class Zeros:
    """A tensor, told."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    storage: str = "plain"

    def make(self):
        return STORAGES[self.storage](torch.zeros(self.shape, dtype=self.dtype))


@dataclass
class Call:
    """Arguments by name; and the names of what may be wrong with them."""

    rank: int
    arguments: dict
    wrong: set = field(default_factory=set)
    refused: bool = False  # by us, whatever PyTorch makes of it

    def made(self):
        return {name: a.make() if isinstance(a, Zeros) else a for name, a in self.arguments.items()}

    def spoil(self, name, value, *also, refused=False):
        self.arguments[name] = value
        self.wrong |= {name, *also}
        self.refused |= refused


@st.composite
def good(draw):
    """Small, yet so that a mistake is seldom hidden by a size of 1."""
    rank = draw(st.sampled_from((2, 1, 3, 0)))
    groups = draw(st.sampled_from((1, 2))) if rank else 1
    batch = draw(st.sampled_from([(2,), (), (0,)]))
    tensors = {
        "input": Zeros((*batch, 4, *[6] * rank)),
        "weight": Zeros((6, 4 // groups, *[3] * rank)),
        "bias": draw(st.sampled_from((Zeros((6,)), None))),
    }
    return Call(rank, tensors | ({"stride": 1, "padding": 0, "dilation": 1, "groups": groups} if rank else {}))


def tensor(draw, call):
    """The name of an operand that is one, and what it is."""
    names = [name for name in OPERANDS if isinstance(call.arguments[name], Zeros)]
    name = draw(st.sampled_from(names)) if names else None
    return name, call.arguments.get(name)


def resized(draw, shape):
    """An axis more, or less, or of another extent."""
    axis = draw(st.integers(0, max(0, len(shape) - 1)))
    kind = draw(st.sampled_from(("extent", "extent", "more", "less"))) if shape else "more"
    extent = draw(st.sampled_from((0, 1, 2, 3, 5, 7, 12)))
    return (*shape[:axis], *(() if kind == "less" else (extent,)), *shape[axis + (kind != "more") :])


def shape(draw, call):
    name, given = tensor(draw, call)
    if name:
        # F.linear takes a bias of any shape that broadcasts, and a weight of one axis; F.conv2d takes no channels
        refused = name != "input" if call.rank == 0 else name != "bias"
        call.spoil(name, replace(given, shape=resized(draw, given.shape)), *OPERANDS, refused=refused)


def dtype(draw, call):
    """Of one operand, or of all."""
    kind = draw(st.sampled_from(NO_FLOAT + FLOATS))
    one, _ = tensor(draw, call)
    for name in OPERANDS if draw(st.booleans()) else (one,):
        if isinstance(call.arguments.get(name), Zeros):
            call.spoil(name, replace(call.arguments[name], dtype=kind), *OPERANDS, refused=True)


def storage(draw, call):
    """Sparse, quantised, nested, or elsewhere."""
    name, given = tensor(draw, call)
    if name and given.shape:
        call.spoil(name, replace(given, storage=draw(st.sampled_from(list(STORAGES)))), *OPERANDS, refused=True)


def nothing(draw, call):
    """No output channels, no input channels, or no pixels."""
    name, axes = draw(st.sampled_from((("out", {"weight": 0, "bias": 0}), ("in", {"weight": 1}), ("pixels", {}))))
    axes |= {"in": {"input": -1 - call.rank}, "pixels": {"input": -1}}.get(name, {})
    for operand, axis in axes.items():
        given = call.arguments[operand]
        if isinstance(given, Zeros) and -len(given.shape) <= axis < len(given.shape):
            extents = list(given.shape)
            extents[axis] = 0
            call.spoil(operand, replace(given, shape=tuple(extents)), *OPERANDS, refused=call.rank > 0)


def no_tensor(draw, call):
    name = draw(st.sampled_from(OPERANDS))
    value = draw(st.sampled_from(NO_TENSOR))
    call.spoil(name, value)


def no_int(draw, call):
    if call.rank:
        call.spoil(draw(st.sampled_from(INTS)), draw(st.sampled_from(NO_INT)))


def number(draw, call):
    """Too small, too large, too many."""
    if call.rank:
        name = draw(st.sampled_from(INTS))
        ints = st.sampled_from((-1, 0, -(2**40), 1, 2, 3, 5, 7, 2**40 if name != "padding" else -2))
        value = draw(ints | st.lists(ints, max_size=4) | st.lists(ints, max_size=4).map(tuple))
        # a dilated kernel may be larger than the input, and groups may not fit the channels; of no images PyTorch
        # takes any dilation
        call.spoil(name, value, "weight", *(OPERANDS if name == "groups" else ()), refused=name == "dilation")


def padding(draw, call):
    if call.rank:
        call.spoil("padding", draw(st.sampled_from(("full", "SAME", "", "same", "valid"))))
        if draw(st.booleans()):
            call.spoil("stride", draw(st.sampled_from((2, 0, [2], (1,) * call.rank, (2,) * call.rank, (1, 2, 1, 2)))))


MISTAKES = (shape, nothing, dtype, storage, no_tensor, no_int, number, padding)


@st.composite
def bad(draw):
    """It may be good after all, where one mistake makes up for another."""
    call = draw(good())
    for mistake in draw(st.lists(st.sampled_from(MISTAKES), min_size=1, max_size=2)):
        mistake(draw, call)
    return call


SIZES = ("in_channels", "out_channels", "kernel_size")
BAD_SIZES = (0, -1, 3, 12, 1.5, "x", None, [3], (1, 2, 3, 4), [])
BAD_INTS = st.sampled_from(NO_INT) | st.sampled_from((0, -1, 3, (), [2, 2, 2, 2], "same", "full"))
OTHERS = {"padding_mode": ("x", None, 1, "reflect"), "dtype": (torch.int64, "x"), "device": ("x", 1.5)}
OURS = {  # arguments of our own, and the error of each
    "alpha": (TypeError, ("x", "1", None, [1.0], 1j)),
    "delta": (TypeError, ("x", None, 1j)),
    "delta ": (ValueError, (-0.01, float("nan"), float("inf"))),
    "activation": (ValueError, ("gelu", 1, torch.relu)),
    "backend": (ValueError, ("fastest", 1, "")),
}


@st.composite
def layer(draw):
    """Arguments of a constructor, and the error where that is for us to say."""
    rank = draw(st.sampled_from((2, 1, 3)))
    arguments = {"in_channels": 4, "out_channels": 6, "kernel_size": 3}
    if draw(st.booleans()):
        name = draw(st.sampled_from(list(OURS)))
        error, values = OURS[name]
        return rank, arguments | {name.strip(): draw(st.sampled_from(values))}, error
    values = {name: st.sampled_from(BAD_SIZES) for name in SIZES} | dict.fromkeys(INTS, BAD_INTS)
    values |= {name: st.sampled_from(bad) for name, bad in OTHERS.items()}
    for name in draw(st.lists(st.sampled_from(list(values)), min_size=1, max_size=2)):
        arguments[name] = draw(values[name])
    return rank, arguments, None
