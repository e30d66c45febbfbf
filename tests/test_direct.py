"""The CPU's convolutions of our own: the layers that take it, at every edge of its tiles, against the oracle."""

import itertools

import problems
import pytest
import torch

FORMATS = {"contiguous": (False, False), "channels_last": (True, True)}

# Channels of 16 and pixels of rows come in whole vectors, or nearly: else ATen's convolution is taken.
LAYERS = {
    "a first layer": {"channels": (3, 64), "size": (9, 32), "padding": 1},
    "one channel": {"channels": (1, 32), "size": (6, 30), "padding": 2},
    "tiles of every size": {"channels": (4, 16), "size": (5, 17), "padding": 1},
    "outputs that fill no vector": {"channels": (5, 31), "size": (4, 32), "padding": 1},
    "several blocks of columns": {"channels": (2, 16), "size": (3, 290), "padding": 1},
    "several blocks of rows": {"channels": (16, 16), "size": (70, 32), "padding": 1, "batch": 2},
    "one image": {"channels": (3, 16), "size": (40, 32), "padding": 1, "batch": 1},
    "a stride": {"channels": (3, 32), "size": (13, 33), "padding": 1, "stride": 2},
    "a stride down the columns": {"channels": (3, 32), "size": (13, 32), "padding": 1, "stride": (3, 1)},
    "a dilation": {"channels": (3, 32), "size": (9, 34), "padding": 1, "dilation": 2},
    "uneven axes": {"channels": (3, 16), "size": (7, 35), "kernel": (2, 5), "padding": (0, 1), "dilation": (3, 1)},
    "more padding than kernel": {"channels": (3, 16), "size": (2, 26), "kernel": 2, "padding": (4, 3)},
    "no padding": {"channels": (3, 16), "size": (8, 34)},
    "1 x 1": {"channels": (16, 48), "size": (5, 16), "kernel": 1},
    "11 x 11": {"channels": (3, 16), "size": (12, 32), "kernel": 11, "padding": 5},
    "depthwise": {"channels": (32, 32), "groups": 32, "size": (9, 17), "padding": 1},
    "depthwise, strided": {"channels": (16, 16), "groups": 16, "size": (9, 17), "padding": 1, "stride": 2},
    "depthwise, dilated": {"channels": (16, 16), "groups": 16, "size": (9, 37), "padding": (0, 2), "dilation": (3, 2)},
    "depthwise, wide": {"channels": (48, 48), "groups": 48, "size": (3, 150), "kernel": (2, 7), "padding": (0, 3)},
    "depthwise, rows apart": {"channels": (16, 16), "groups": 16, "size": (11, 5), "padding": 1, "stride": (2, 1)},
    "depthwise, channels that fill no vector": {"channels": (21, 21), "groups": 21, "size": (9, 7), "padding": 1},
    "depthwise, channels in blocks": {
        "channels": (70, 70),
        "groups": 70,
        "size": (4, 130),
        "kernel": (5, 3),
        "padding": 1,
    },
    "depthwise, rows in blocks": {"channels": (5, 5), "groups": 5, "size": (61, 6), "padding": 1, "batch": 1},
    "depthwise, strided rows in blocks": {"channels": (3, 3), "groups": 3, "size": (63, 6), "stride": 2, "batch": 2},
    "depthwise, more taps than registers": {"channels": (9, 9), "groups": 9, "size": 12, "kernel": 7, "padding": 3},
    "depthwise, more stride than kernel": {
        "channels": (6, 6),
        "groups": 6,
        "size": (13, 12),
        "kernel": 2,
        "stride": (5, 3),
    },
    "depthwise, gaps": {"channels": (8, 8), "groups": 8, "size": (7, 11), "kernel": 2, "stride": 3, "dilation": (3, 4)},
    "depthwise, more padding than kernel": {
        "channels": (8, 8),
        "groups": 8,
        "size": (40, 4),
        "kernel": 2,
        "padding": (5, 7),
        "stride": (1, 2),
        "batch": 1,
    },
    "depthwise, 1 x 1": {"channels": (8, 8), "groups": 8, "size": (5, 9), "kernel": 1},
    "one dimension, depthwise": {"rank": 1, "channels": (16, 16), "groups": 16, "size": 40, "padding": 1},
    "linear": {"rank": 0, "channels": (20, 10), "batch": 130},
    "linear, one output": {"rank": 0, "channels": (33, 1), "batch": 5},
    "linear, one image": {"rank": 0, "channels": (20, 16), "batch": 1},
    "one pixel": {"channels": (20, 10), "size": 1, "kernel": 1, "batch": 40},
    "one column": {"channels": (20, 10), "size": (7, 1), "kernel": 1},
    "padding alone along the depth": {
        "rank": 3,
        "channels": (4, 16),
        "size": (1, 8, 32),
        "kernel": (1, 3, 3),
        "stride": (3, 1, 1),
        "padding": (1, 1, 1),
    },
    "depthwise, padding alone along the depth": {
        "rank": 3,
        "channels": (16, 16),
        "groups": 16,
        "size": (1, 8, 32),
        "kernel": (1, 3, 3),
        "stride": (3, 1, 1),
        "padding": (1, 1, 1),
    },
    "one dimension": {"rank": 1, "channels": (8, 16), "size": 160, "kernel": 5, "padding": 2},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("formats", FORMATS)
@pytest.mark.parametrize("layer", LAYERS)
def test_results_are_those_of_the_oracle(layer, formats, dtype):
    settings = {"rank": 2, "batch": 3, **LAYERS[layer]}
    if settings["rank"] < 2 and formats == "channels_last":
        formats = "contiguous"
    problem = problems.make(**settings, dtype=dtype, formats=FORMATS[formats])
    problems.assert_accurate(problem, problem.run("cpu"))


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
@pytest.mark.parametrize("formats", FORMATS)
@pytest.mark.parametrize(
    "layer", [{"channels": (3, 32)}, {"channels": (32, 32), "groups": 32}], ids=["dense", "depthwise"]
)
def test_the_end_of_a_tile(layer, formats, relu, bias):
    problem = problems.make(**layer, size=(6, 33), padding=1, relu=relu, bias=bias, formats=FORMATS[formats])
    problems.assert_accurate(problem, problem.run("cpu"))


@pytest.mark.parametrize("formats", FORMATS)
@pytest.mark.parametrize(
    "layer", [{"channels": (16, 16)}, {"channels": (16, 16), "groups": 16}], ids=["dense", "depthwise"]
)
def test_nan_and_infinity_pass_the_fused_relu(layer, formats):
    x = torch.randn(2, 16, 8, 32)
    x[0, 1, 3, 7], x[1, 2, 5, 20] = float("nan"), float("inf")
    problem = problems.make(**layer, size=(8, 32), padding=1, relu=True, formats=FORMATS[formats])
    problem.input = problems.in_format(x, FORMATS[formats][0])
    call = {"activation": "relu", **problem.geometry}
    actual = problems.PUBLIC[2](*problem.operands, **call, backend="cpu")
    expected = problems.PUBLIC[2](*problem.operands, **call, backend="reference")
    torch.testing.assert_close(actual, expected, equal_nan=True)
    assert actual.isnan().any()


@pytest.mark.parametrize("formats", FORMATS)
def test_the_same_bits_whatever_the_threads_and_the_batch(formats):
    problem = problems.make(channels=(3, 64), size=(20, 32), padding=1, batch=4, formats=FORMATS[formats])
    call = {"padding": 1, "backend": "cpu"}
    whole = problems.PUBLIC[2](*problem.operands, **call)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = problems.PUBLIC[2](problem.input[1:2], *problem.operands[1:], **call)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(whole[1:2], alone)


MASKS = list(itertools.product([False, True], repeat=4))
# Whether u / d is saved, for each ReLU and mask of x, W, alpha and b that can do with that.
NEEDS = [
    (mask, relu, saves)
    for mask, relu, saves in itertools.product(MASKS, [False, True], [False, True])
    if saves or not ((mask[0] and not relu) or (mask[2] and not mask[1]))
]


def name_of(needs):
    mask, relu, saves = needs
    asked = "".join(name for name, needed in zip("xwab", mask, strict=True) if needed) or "nothing"
    return f"{asked}{', relu' if relu else ''}{', of z' if saves else ''}"


def depthwise(channels_last, relu=False, dtype=torch.float32, **settings):
    settings = {"size": (9, 10), "padding": 1, "stride": 2, "batch": 3, **settings}
    return problems.make(channels=(12, 12), groups=12, **settings, dtype=dtype, relu=relu, formats=(channels_last,) * 2)


def gradients(problem, mask=(True,) * 4, saves=True):
    """What the operator makes of a call: of its ReLU's output, if it has one, and of u / d where that is saved."""
    spec = [[n] * 2 for n in (problem.geometry["stride"], problem.geometry["padding"], 1)]
    settings = (*spec, problem.geometry["groups"], problem.delta)
    y, z, r = torch.ops.ccn_native.compact_conv(*problem.operands, *settings, problem.relu, saves)
    saved = (y if problem.relu else None, z if saves else None, r)
    results = torch.ops.ccn_native.compact_conv_backward(problem.grad, *problem.operands, *saved, *settings, list(mask))
    return dict(zip(("input", "weight", "alpha", "bias"), results, strict=True))


@pytest.mark.parametrize("formats", FORMATS)
@pytest.mark.parametrize("needs", NEEDS, ids=name_of)
def test_a_depthwise_backward_computes_what_is_needed(needs, formats):
    mask, relu, saves = needs
    problem = depthwise(FORMATS[formats][0], relu, torch.float64)
    expected, parts = problem.oracle(), gradients(problem, mask, saves)
    for needed, (name, part) in zip(mask, parts.items(), strict=True):
        if needed:
            assert problems.relative_error(part, expected[name]) < 1e-14, name
        else:
            assert part.numel() == 0


@pytest.mark.parametrize("formats", FORMATS)
def test_a_depthwise_backward_gives_the_same_bits_whatever_the_threads(formats):
    problem = depthwise(FORMATS[formats][0], size=(60, 50), batch=2)
    whole, threads = gradients(problem), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = gradients(problem)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(whole[name], alone[name]) for name in whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("formats", FORMATS)
def test_a_depthwise_backward_keeps_what_is_not_finite_where_it_is_read(formats, value):
    problem = depthwise(FORMATS[formats][0], kernel=2, padding=0, stride=3)
    problem.input[2, 5, 3, 4] = value
    problem.input[1, 7, 2, :], problem.input[1, 7, :, 8] = value, value  # between the patches
    actual, expected = gradients(problem), problem.oracle()
    assert actual["input"].isnan().any()
    for name in ("input", "weight"):
        assert torch.equal(actual[name].isnan(), expected[name].isnan()), name
        torch.testing.assert_close(actual[name].double(), expected[name], equal_nan=True, rtol=1e-5, atol=1e-5)
    assert actual["bias"].isfinite().all()


@pytest.mark.parametrize("formats", FORMATS)
@pytest.mark.parametrize("column", [0, -1])
def test_infinity_at_the_end_of_a_row_reaches_only_the_taps_that_read_it(column, formats):
    problem = depthwise(FORMATS[formats][0], stride=1)
    problem.input[0] = torch.randn(problem.input.shape[1:])
    problem.input[0, 5, 4, column] = float("inf")
    actual, expected = gradients(problem), problem.oracle()
    for name in ("input", "weight"):
        assert torch.equal(actual[name].isfinite(), expected[name].isfinite()), name
    assert not actual["weight"][5].isfinite().all()


def test_a_linear_layer_gives_the_same_bits_whatever_the_batch():
    problem = problems.make(0, (200, 10), batch=700)
    whole = problems.PUBLIC[0](*problem.operands, backend="cpu")
    alone = problems.PUBLIC[0](problem.input[300:301], *problem.operands[1:], backend="cpu")
    assert torch.equal(whole[300:301], alone)


@pytest.mark.parametrize("dilation", [400, 20_000])
def test_a_dilation_so_wide_that_a_block_would_not_fit_the_cache(dilation):
    problem = problems.make(channels=(16, 16), size=(3, dilation + 2), kernel=(1, 2), dilation=(1, dilation), batch=1,
                            formats=(True, True))  # fmt: skip
    problems.assert_accurate(problem, problem.run("cpu"))


def test_a_depthwise_dilation_so_wide_that_rows_would_not_fit_the_cache():
    problem = problems.make(channels=(16, 16), groups=16, size=(1100, 2), kernel=(2, 1), dilation=(1000, 1), batch=1,
                            formats=(True, True))  # fmt: skip
    problems.assert_accurate(problem, problem.run("cpu"))
