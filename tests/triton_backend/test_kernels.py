"""Every kernel, in every class of configurations, against the fp64 oracle: tiles are forced, not chosen."""

import itertools

import calls
import oracle
import problems
import pytest
import torch
import triton
import triton.language as tl
from calls import DTYPES, NARROW, check, small

from ccn_kernels.backends.triton import launch
from ccn_kernels.backends.triton.indexing import dense_places
from ccn_kernels.backends.triton.tiles import HYBRID

LAST = (True, True)
BOTH = [(False, False), LAST]
SETTINGS = {"plain": {"bias": False}, "relu": {"relu": True}}  # a bias is everywhere else
RAGGED = {"channels": (24, 40), "size": (6, 7), "padding": 1}  # overhangs boxes, blocks of outputs, and steps

# A forward tile of every kernel, and a problem that overhangs it.
FORWARD = {
    "descriptor": (small("descriptor", 64, 32), {**RAGGED, "formats": LAST}),
    "descriptor-split": (small("descriptor", 64, 32, splits=3), {**RAGGED, "formats": LAST}),
    "descriptor-rows": (small("descriptor", 64, 32, squares="rows"), {**RAGGED, "formats": LAST}),
    "descriptor-images": (small("descriptor", 64, 32, squares="images"), {**RAGGED, "formats": LAST}),
    "descriptor-plane": (small("descriptor", 64, 32, squares="plane"), {**RAGGED, "formats": LAST}),
    "descriptor-strided": (small("descriptor"), {"channels": (16, 24), "stride": 2, "padding": 1, "formats": LAST}),
    "gather": (small("gather", 64), {"channels": (5, 17), "padding": 1, "size": (5, 6)}),
    "gather-aligned": (small("gather", 64), {"channels": (16, 17), "padding": 1, "size": (5, 6)}),
    "gather-split": (small("gather", 64, splits=2), {"channels": (15, 17), "padding": 1, "size": (5, 6)}),
    "gather-plane": (small("gather", 64, squares="plane"), {"channels": (5, 17), "padding": 1, "size": (5, 6)}),
    "depthwise": (small("depthwise"), {"channels": (6, 12), "groups": 6, "padding": 1}),
    "hybrid": (HYBRID, {"channels": (5, 17), "padding": 1}),
}

# Shapes for products by descriptor: channels in multiples of 8, stride 1.
BOXES = {
    "1x1": {"kernel": 1, "channels": (16, 64), "size": 5},
    "1x1-padded": {"kernel": 1, "padding": 2, "size": 3},
    "1x5": {"kernel": (1, 5), "padding": (0, 2)},
    "4x3-dilated": {"kernel": (4, 3), "padding": (1, 0), "dilation": (2, 1), "size": (10, 6)},
    "5x5": {"kernel": 5, "padding": 2, "channels": (8, 16), "size": (4, 8)},
    "7x7": {"kernel": 7, "padding": 3, "channels": (8, 8), "size": 4, "batch": 2},
    "7x7-whole-image": {"kernel": 7, "size": 7, "channels": (8, 8)},
    "no-padding": {},
    "padding-over-kernel": {"padding": 3, "size": 2},
    "padding-over-dilated-kernel": {"padding": (5, 3), "dilation": (2, 1), "size": (3, 4)},
    "one-pixel": {"padding": 1, "size": 1, "batch": 5},
    "one-row": {"padding": 1, "size": (1, 9)},
    "one-column": {"padding": 1, "size": (9, 1)},
    "one-image": {"padding": 1, "batch": 1},
    "many-small-images": {"padding": 1, "size": 2, "batch": 19},
    "whole-power-of-two": {"padding": 1, "size": 4, "batch": 4},
    "512-channels": {"channels": (512, 24), "kernel": (1, 3), "padding": (0, 1), "size": 1},
    "512-outputs": {"channels": (24, 512), "kernel": (1, 3), "padding": (0, 1), "size": 1},
    "grouped": {"channels": (64, 64), "groups": 2, "padding": 1, "size": (5, 4)},
    "contiguous": {"padding": 1, "formats": (False, False)},
    "1-d": {"rank": 1, "kernel": 5, "padding": 2, "size": 17, "formats": (False, False)},
    "linear": {"rank": 0, "channels": (24, 40), "batch": 7, "formats": (False, False)},
    "3-d-flat": {"rank": 3, "kernel": (1, 3, 3), "padding": (0, 1, 1), "size": (1, 4, 5)},
}

# Shapes for strided products by descriptor: extents are multiples of the stride.
STRIDED_BOXES = {
    "2": {"padding": 1},
    "2-no-padding": {},
    "2-padding-over-stride": {"padding": 3},
    "2-dilated": {"dilation": 2, "padding": 2},
    "2-even": {"kernel": 2},
    "2-1": {"stride": (2, 1), "padding": (1, 0), "size": (6, 5)},
    "1-2": {"stride": (1, 2), "padding": (0, 1), "size": (5, 6)},
    "2-3": {"stride": (2, 3), "padding": (1, 2), "size": (4, 9)},
    "3": {"stride": 3, "padding": 2, "size": 9},
    "3-dilated": {"stride": 3, "padding": (4, 1), "dilation": (2, 1), "size": 9},
    "4-over-kernel": {"stride": 4, "padding": 1, "size": 8},
    "7x7": {"kernel": 7, "padding": 3, "channels": (16, 16), "size": 6},
    "1x1-padded": {"kernel": 1, "padding": 1},
    "grouped": {"channels": (32, 48), "groups": 2, "padding": 1},
    "one-pixel-out": {"kernel": 6, "stride": 6, "size": 6},
    "one-image": {"padding": 1, "batch": 1},
    "contiguous": {"padding": 1, "formats": (False, False)},
    "1-d": {"rank": 1, "kernel": 5, "padding": 2, "size": 16, "formats": (False, False)},
}

# Shapes for products by pointers: any channels, strides, groups, ranks.
POINTERS = {
    "1x1": {"kernel": 1, "channels": (3, 8)},
    "1x1-padded": {"kernel": 1, "padding": 1, "groups": 2, "stride": 3},
    "one-channel": {"channels": (1, 7), "padding": 1},
    "one-output": {"channels": (5, 1), "padding": 1},
    "63-channels": {"channels": (63, 5), "size": 4, "kernel": 2},
    "65-channels": {"channels": (65, 3), "size": 4, "kernel": 2},
    "65-outputs": {"channels": (3, 65), "size": 4},
    "512-channels": {"channels": (512, 3), "kernel": 1, "size": 1},
    "4x3": {"kernel": (4, 3), "padding": (1, 0), "dilation": (2, 1), "size": (10, 6)},
    "1x5-strided": {"kernel": (1, 5), "padding": (0, 2), "stride": (1, 2)},
    "5x5": {"kernel": 5, "stride": 3, "padding": 4, "dilation": 2, "size": 10},
    "7x7-rgb": {"kernel": 7, "stride": 2, "padding": 3, "channels": (3, 8), "size": 8},
    "everything": {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2, "formats": LAST},
    "stride-over-kernel": {"stride": 4, "padding": 1, "size": (11, 9)},
    "padding-over-kernel": {"padding": 4, "size": 3, "formats": LAST},
    "one-pixel": {"padding": 1, "size": 1, "batch": 40},
    "one-image": {"padding": 1, "batch": 1, "formats": (True, False)},
    "grouped": {"channels": (9, 6), "groups": 3, "padding": 1, "formats": (False, True)},
    "depthwise": {"channels": (5, 10), "groups": 5, "padding": 1},
    "1-d": {"rank": 1, "kernel": 3, "stride": 2, "padding": 4, "dilation": 3, "groups": 2, "size": 15},
    "linear": {"rank": 0, "channels": (13, 5), "batch": 9},
    "3-d": {"rank": 3, "kernel": (2, 3, 1), "stride": (1, 2, 1), "padding": (1, 2, 0), "dilation": (2, 1, 1),
            "groups": 2, "size": (4, 5, 3)},
    "3-d-channels-last": {"rank": 3, "kernel": 2, "padding": 1, "size": 3, "formats": LAST},
}  # fmt: skip

# Shapes with one input channel a group.
DEPTHWISE = {
    "multiplier-1": {"channels": (5, 5), "groups": 5, "padding": 1},
    "multiplier-2": {"channels": (12, 24), "groups": 12, "padding": 1, "formats": LAST},
    "multiplier-3": {"channels": (7, 21), "groups": 7, "kernel": 2},
    "one-group": {"channels": (1, 24), "groups": 1, "padding": 1},
    "strided": {"channels": (4, 8), "groups": 4, "stride": (2, 3), "padding": (1, 2), "dilation": (1, 2)},
    "padding-over-kernel": {"channels": (3, 3), "groups": 3, "padding": 4, "size": 2},
    "one-pixel": {"channels": (17, 34), "groups": 17, "padding": 1, "size": 1},
    "1-d": {"rank": 1, "channels": (6, 6), "groups": 6, "kernel": 5, "padding": 2},
    "3-d": {"rank": 3, "channels": (3, 6), "groups": 3, "kernel": (2, 3, 1), "size": (3, 4, 5), "formats": LAST},
}


def make(dtype, rank=2, **settings):
    return problems.make(rank, **{"size": 6, **settings}, dtype=dtype)


def boxable(dtype, **settings):
    """A problem whose operands are channels_last unless it says otherwise."""
    return make(dtype, **{"channels": (24, 40), "formats": LAST, **settings})


def strided(dtype, **settings):
    return boxable(dtype, **{"channels": (16, 24), "stride": 2, **settings})


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kernel", FORWARD)
def test_forward_with_and_without_bias_and_relu(kernel, setting):
    tile, shape = FORWARD[kernel]
    check(make(torch.float32, **shape, **SETTINGS[setting]), forward=tile)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("squares", ["rows", "images", "plane"])
def test_forward_by_descriptors(squares, splits, dtype):
    tile = small("descriptor", 64, 32, squares=squares, splits=splits)
    check(boxable(dtype, **RAGGED, batch=2), forward=tile)


@pytest.mark.parametrize("squares", ["rows", "images"])
@pytest.mark.parametrize(
    "shape",
    [
        {"kernel": 1, "padding": 0, "size": (4, 8)},
        {"kernel": (1, 5), "padding": (0, 2)},
        {"kernel": 2, "padding": 0},
        {"kernel": (4, 2), "padding": (3, 1), "size": 5},
        {"kernel": 3, "padding": 2, "size": 5},
        {"kernel": 3, "padding": 2, "dilation": 2},
        {"kernel": 3, "padding": (2, 0), "dilation": (1, 2), "size": (4, 7)},
        {"kernel": 5, "padding": 2, "channels": (8, 16), "size": 2, "batch": 20},
        {"kernel": 3, "padding": 1, "channels": (32, 32), "groups": 2, "size": (3, 8)},
        {"kernel": 3, "padding": 1, "rank": 1, "size": 50, "formats": (False, False)},
    ],
    ids=str,
)
def test_squares_of_the_centre_alone(shape, squares):
    check(boxable(torch.float32, **shape), forward=small("descriptor", 64, 32, squares=squares))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", BOXES)
def test_descriptors(shape, dtype):
    """All three passes; but fp32 has no such gradient of the weight, and its other one repacks the weight first."""
    tile = small("descriptor", 32, 32, 32)
    wgrad = HYBRID if dtype == torch.float32 else tile
    problem = boxable(dtype, **BOXES[shape], relu=dtype != torch.float32)
    found = check(problem, forward=tile, dgrad=tile, wgrad=wgrad)
    (launch,) = found.launched("dgrad_descriptor")
    assert launch.arguments["REPACKED"] == (dtype == torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", STRIDED_BOXES)
def test_strided_descriptors(shape, dtype):
    tile = small("descriptor", 32, 32)
    wgrad = HYBRID if dtype == torch.float32 else tile
    check(strided(dtype, **STRIDED_BOXES[shape], relu=dtype != torch.float32), forward=tile, wgrad=wgrad)


def test_strided_descriptors_in_shares():
    check(strided(torch.float32, padding=1), forward=small("descriptor", splits=2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", POINTERS)
def test_pointers(shape, dtype):
    """All three passes."""
    tile = small("gather", 64, 16, 32)
    check(make(dtype, **POINTERS[shape], relu=dtype != torch.float32), forward=tile, dgrad=tile, wgrad=tile)


@pytest.mark.parametrize("formats", BOTH, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("squares", ["loop", "plane"])
@pytest.mark.parametrize("channels", [15, 16], ids=["across taps", "within taps"])
def test_pointers_otherwise_configured(channels, squares, splits, formats):
    forward = small("gather", 64, 32, squares=squares, splits=splits)
    problem = make(torch.float32, channels=(channels, 20), size=4, padding=1, formats=formats)
    check(problem, forward=forward)


@pytest.mark.parametrize("formats", BOTH, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("depth", [16, 32, 64])
@pytest.mark.parametrize("shape", ["one-channel", "4x3", "everything", "65-outputs"])
def test_short_sums(shape, depth, formats):
    """Column by column: in one step, and in several."""
    problem = make(torch.float16, **{**POINTERS[shape], "formats": formats})
    found = check(problem, forward=small("gather", 32, 16, depth, squares="loop"), wgrad=small("gather", 32, 16, depth))
    assert found.launched("forward_gather")[0].arguments["UNROLLED"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_short_sums_of_volumes_and_of_weights_with_gaps(dtype):
    problem = make(dtype, rank=3, channels=(2, 5), size=(3, 4, 5), kernel=(2, 3, 1), padding=(1, 1, 0))
    problem.weight = torch.randn(5, 2, 2, 3, 2).to(dtype)[..., :1]
    check(problem, forward=small("gather", squares="loop"), wgrad=small("gather"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", DEPTHWISE)
def test_depthwise(shape, dtype):
    check(make(dtype, **{"size": 4, **DEPTHWISE[shape]}, relu=dtype != torch.float32), forward=small("depthwise"))


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.float16], ids=str)
@pytest.mark.parametrize("shape", POINTERS)
def test_passes_around_atens_products(shape, dtype):
    """fp16 has no such forward pass; its backward passes are part of other tests."""
    check(make(dtype, **POINTERS[shape], relu=dtype != torch.float32), forward=HYBRID)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", ["descriptor", "gather"])
def test_gradient_of_the_input_in_several_steps_a_tap(kernel, dtype):
    check(boxable(dtype, **RAGGED), dgrad=small(kernel, 64, 32))


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("kernel", ["descriptor", "gather"])
@pytest.mark.parametrize("size", [(4, 8), (5, 6)], ids=["boxes of consecutive places", "boxes that overhang"])
def test_gradient_of_the_weight_in_shares(size, kernel, dtype):
    tile = small(kernel, 16, 32, 64, splits=2)
    check(boxable(dtype, size=size, padding=1, batch=4), wgrad=tile)


@pytest.mark.parametrize("kernel", ["hybrid", "descriptor", "gather"])
def test_fp16_gradients_that_overflow_before_they_are_scaled(kernel):
    """g / delta is 1e5 at the zero patches of the first image, beyond fp16; the gradients themselves are within it."""
    problem = boxable(torch.float16, channels=(16, 16), size=4, padding=1, alpha=0.5)
    problem.weight *= 0.01
    problem.grad[0] = 1000
    tile = HYBRID if kernel == "hybrid" else small(kernel, 32, 32, 32)
    wgrad = calls.cheap(torch.float16) if kernel == "hybrid" else tile
    found = check(problem, dgrad=tile, wgrad=wgrad)
    assert found.results["input"][0].abs().max() > 1000
    problem.grad.zero_()  # nothing to scale by
    found = calls.run(problem, dgrad=tile, wgrad=wgrad)
    assert all(found.results[name].abs().max() == 0 for name in calls.NAMES)


@pytest.mark.parametrize("kernel", ["hybrid", "descriptor", "gather"])
def test_fp16_gradients_that_overflow_if_they_are_scaled(kernel):
    """Sums over many places of large activations are within fp16, but not when e is brought to its upper end first."""
    problem = boxable(torch.float16, channels=(8, 8), size=8, batch=8)
    problem.input = 100 * torch.rand_like(problem.input)
    problem.grad = torch.rand_like(problem.grad)
    tile = HYBRID if kernel == "hybrid" else small(kernel, 64, 16, 32)
    assert problem.oracle()["weight"].abs().max() < 100
    check(problem, dgrad=tile, wgrad=calls.cheap(torch.float16) if kernel == "hybrid" else tile)


@pytest.mark.parametrize("scale", [1e4, 1e-6])
@pytest.mark.parametrize("settings", [{"groups": 4, "stride": (1, 2)}, {"rank": 3, "size": 4}], ids=str)
def test_fp16_activations_whose_gradients_leave_its_range_before_they_are_divided(settings, scale):
    """e is about 1 / scale, and its sums with the input's numbers are about 1: what is narrowed between must not be."""
    problem = make(torch.float16, channels=(4, 4), padding=1, scale=scale, **settings)
    problem.input = problem.input.clamp(-6e4, 6e4)
    problems.assert_accurate(problem, calls.public(problem))


@pytest.mark.parametrize("kernel", ["hybrid", "descriptor", "gather"])
def test_fp16_gradients_of_the_input_that_overflow_if_they_are_scaled(kernel):
    """The same of sums over many output channels."""
    problem = boxable(torch.float16, channels=(8, 128), size=4, padding=1, bias=False)
    problem.weight = problems.in_format(torch.rand(problem.weight.shape).half(), True)
    problem.input, problem.grad = torch.rand_like(problem.input), 0.01 * torch.rand_like(problem.grad)
    expected = problem.oracle()["input"]
    assert expected.abs().max() < 10
    tile = HYBRID if kernel == "hybrid" else small(kernel, 64, 16, 64)
    found = calls.run(problem, forward=calls.cheap(torch.float16), dgrad=tile).results["input"]
    # element by element, a sum of one sign that is rounded before it cancels is worse than its terms explain
    yardstick = problems.relative_error(problem.naive()["input"], expected)
    assert problems.relative_error(found, expected) <= 2 * yardstick + 1e-6


@pytest.mark.parametrize(
    ("kernel", "dtype", "relu"),
    [
        ("descriptor", torch.float16, True),
        ("gather", torch.float32, False),
        ("gather", torch.float32, True),
        ("hybrid", torch.float16, False),
        ("hybrid", torch.float32, True),
    ],
    ids=str,
)
def test_every_subset_of_gradients_is_part_of_the_full_set(kernel, dtype, relu):
    problem = boxable(dtype, channels=(8, 16), size=3, kernel=2, relu=relu, batch=2)
    tile = HYBRID if kernel == "hybrid" else small(kernel, 64, 16)
    tiles = {"forward": calls.cheap(dtype), "dgrad": tile, "wgrad": calls.cheap(dtype) if tile == HYBRID else tile}
    full = calls.run(problem, save_quotient=True, **tiles).results
    for mask in itertools.product([False, True], repeat=4):
        found = calls.run(problem, save_quotient=True, mask=list(mask), **tiles).results
        for name, asked in zip(calls.NAMES, mask, strict=True):
            assert found[name].dtype == dtype
            if not asked:
                assert found[name].shape == (0,), (mask, name)
            elif name == "alpha" and not mask[1]:  # summed over outputs then, not over weights
                tolerance = max(1e-5, 4 * torch.finfo(dtype).eps)
                torch.testing.assert_close(found[name], full[name], rtol=tolerance, atol=0)
            else:
                assert torch.equal(found[name], full[name]), (mask, name)


@pytest.mark.parametrize("mask", [[True, False, False, False], [False, False, True, False]], ids=["input", "alpha"])
def test_gradients_that_need_the_quotient_are_refused_without_it(mask):
    with pytest.raises(RuntimeError, match="quotient must be given"):
        calls.run(make(torch.float32), save_quotient=False, mask=mask)


def test_the_gradient_of_alpha_alone_needs_the_quotient_under_the_relu_too():
    """From y it would have to be divided by alpha."""
    with pytest.raises(RuntimeError, match="quotient must be given"):
        calls.run(make(torch.float32, relu=True), save_quotient=False, mask=[False, False, True, False])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", ["descriptor", "gather"])
def test_the_same_call_gives_the_same_bits(kernel, dtype):
    problem = boxable(dtype, channels=(16, 24), size=4, padding=1, batch=4)
    tile = small(kernel, 16, 32, splits=2)
    wgrad = HYBRID if kernel == "descriptor" and dtype == torch.float32 else tile
    first, second = (calls.run(problem, forward=tile, dgrad=tile, wgrad=wgrad) for _ in range(2))
    for name, value in first.results.items():
        assert torch.equal(value, second.results[name]), name
    assert torch.equal(first.norm, second.norm)


@pytest.mark.parametrize("kernel", FORWARD)
def test_a_bad_value_reaches_only_the_outputs_that_see_it(kernel):
    tile, shape = FORWARD[kernel]
    problem = make(torch.float32, **shape, relu=True)
    clean = calls.run(problem, mask=[False] * 4, forward=tile).results["output"]
    problem.input[1, 0, 0, 0], problem.input[2, 4, 3, 5] = float("inf"), float("nan")
    patches = oracle.unfold(problem.input, problem.weight.shape[2:], **problem.geometry)[0]
    seen = patches.isfinite().all(2).logical_not().repeat_interleave(clean.shape[1] // patches.shape[1], 1)
    seen = seen.reshape(clean.shape)
    assert 0 < seen.sum() < seen.numel() / 4
    dirty = calls.run(problem, mask=[False] * 4, forward=tile).results["output"]
    assert dirty[seen].isnan().all()  # inf / inf is NaN
    assert torch.equal(dirty[~seen], clean[~seen])


# Views that a descriptor can read where they lie: [3, 16, 6, 6], channels innermost.
VIEWS = {
    "channels": lambda x: x[:3, 16:32, :6, :6].contiguous(memory_format=torch.channels_last),
    "some channels": lambda x: x[:3, :, :6, :6].contiguous(memory_format=torch.channels_last)[:, 16:32],
    "some rows": lambda x: x[:3, :16, :, :6].contiguous(memory_format=torch.channels_last)[:, :, 2:8],
    "a crop": lambda x: x[:3, :16].contiguous(memory_format=torch.channels_last)[:, :, 1:7, 2:8],
    "every other image": lambda x: x[:, :16, :6, :6].contiguous(memory_format=torch.channels_last)[::2],
    "one image expanded": lambda x: (
        x[:1, :16, :6, :6].contiguous(memory_format=torch.channels_last).expand(3, 16, 6, 6)
    ),
    "off alignment": lambda x: x[:3, :, :6, :6].contiguous(memory_format=torch.channels_last)[:, 1:17],
    "an odd number of channels apart": lambda x: x[:3, :33, :6, :6].contiguous(memory_format=torch.channels_last)[
        :, :16
    ],
}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_descriptors_of_views(view, dtype, stride):
    problem = boxable(dtype, channels=(16, 16), size=6, padding=1, stride=stride)
    problem.input = VIEWS[view](torch.randn(5, 40, 8, 8).to(dtype))
    problems.settle_gradient(problem)
    tile = small("descriptor", 64, 32)
    check(problem, forward=tile, wgrad=tile if dtype != torch.float32 else HYBRID)


@pytest.mark.parametrize(
    ("kind", "tile", "dtype", "shape", "why"),
    [
        ("forward", HYBRID, torch.float16, {}, "overflows fp16"),
        ("wgrad", HYBRID, torch.float16, {}, "narrowed to fp16"),
        ("forward", small("warp"), torch.float32, {}, "kernel must be .*'warp'"),
        ("forward", small("depthwise"), torch.float32, {}, "one input channel a group"),
        ("dgrad", small("depthwise"), torch.float32, {"channels": (6, 6), "groups": 6}, "forward pass"),
        ("forward", small("descriptor"), torch.float32, {"channels": (6, 8)}, "multiples of 16 bytes"),
        ("forward", small("descriptor"), torch.float16, {"channels": (12, 8)}, "multiples of 16 bytes"),
        ("dgrad", small("descriptor"), torch.float32, {"channels": (8, 6)}, "multiples of 16 bytes"),
        ("wgrad", small("descriptor"), torch.float16, {"channels": (8, 6)}, "multiples of 16 bytes"),
        ("forward", small("descriptor"), torch.float32, {"rank": 3, "size": 3}, "two spatial axes"),
        ("forward", small("descriptor"), torch.float32, {"channels": (16, 8), "stride": 2, "size": 7}, "multiples"),
        ("dgrad", small("descriptor"), torch.float32, {"channels": (8, 8), "stride": 2}, "stride 1"),
        ("wgrad", small("descriptor"), torch.float32, {"channels": (8, 8)}, "TF32"),
        ("forward", small("descriptor"), torch.float32, {"channels": (16, 8), "groups": 2}, "groups or strides"),
        ("forward", small("descriptor"), torch.float32, {"channels": (24, 8), "stride": 2}, "groups or strides"),
        ("wgrad", small("descriptor"), torch.float16, {"channels": (24, 8), "stride": 2}, "strides"),
        ("forward", small("descriptor", squares="rows"), torch.float32, {"padding": 3}, "centre"),
        ("forward", small("descriptor", squares="images"), torch.float32, {"dilation": 2, "padding": 1}, "centre"),
        ("forward", small("descriptor", squares="images"), torch.float32, {"stride": 2}, "centre"),
        ("forward", small("descriptor", squares="images"), torch.float32, {"padding": 1, "size": 7}, "hold"),
        ("forward", small("descriptor", squares="rows"), torch.float32, {"padding": 1, "size": (2, 33)}, "hold"),
        ("forward", small("gather", squares="rows"), torch.float32, {}, "loop or in a plane"),
        ("forward", small("descriptor", squares="guess"), torch.float32, {}, "squares must be .*'guess'"),
        ("forward", small("descriptor", depth=4), torch.float32, {"channels": (8, 8)}, "powers of two"),
        ("forward", small("gather", places=48), torch.float32, {}, "powers of two"),
    ],
)  # fmt: skip
def test_a_tile_that_cannot_run_is_refused_with_the_reason(kind, tile, dtype, shape, why):
    problem = make(dtype, **shape)
    with pytest.raises(ValueError, match=f"cannot run [^:]*: .*{why}") as caught:
        calls.run(problem, **{kind: tile})
    assert repr(tile) in str(caught.value)


@pytest.mark.parametrize("kernel", ["descriptor", "gather", "depthwise", "hybrid"])
def test_offsets_of_64_bits(kernel, monkeypatch):
    """As for more than 2**31 elements, without them."""
    monkeypatch.setattr(launch, "LARGEST_INT", 0)
    dtype = torch.float32 if kernel == "hybrid" else torch.float16
    if kernel == "depthwise":
        found = check(make(dtype, channels=(6, 12), groups=6, padding=1), forward=small(kernel))
    else:
        tile = HYBRID if kernel == "hybrid" else small(kernel)
        channels = (3, 8) if kernel == "gather" else (16, 24)
        found = check(boxable(dtype, channels=channels, padding=1), forward=tile, dgrad=tile, wgrad=tile)
    wide = [call.arguments["INDEX"] for call in found.launches if "INDEX" in call.arguments]
    assert set(wide) == {tl.int64}


@triton.jit
def write_places(out, first, pixels, CHANNELS: tl.constexpr):
    place = tl.cast(first, tl.int64) + tl.arange(0, 2)
    tl.store(out + tl.arange(0, 2), dense_places(place, pixels, CHANNELS, False))


def test_images_of_more_than_32_bits_lie_apart():
    pixels, channels = 2**26, 64
    out = torch.empty(2, dtype=torch.int64, device=calls.DEVICE)
    write_places[(1,)](out, pixels + 5, pixels, channels)
    assert out.tolist() == [pixels * channels + 5, pixels * channels + 6]
