"""The CPU's Winograd convolution, which 3x3 layers with many tiles of 2x2 outputs take, against the oracle."""

import problems
import pytest
import torch

FORMATS = {"contiguous": (False, False), "channels_last": (True, True), "mixed": (True, False)}

# At least 48 tiles each, and channels in whole vectors of every instruction set: else other convolutions are taken.
LAYERS = {
    "whole tiles": {"channels": (64, 64), "size": (8, 12), "padding": 1, "batch": 6},
    "outputs that fill no tile": {"channels": (64, 96), "size": (9, 7), "padding": 1, "batch": 7},
    "no padding": {"channels": (96, 64), "size": (9, 10), "batch": 8},
    "uneven padding": {"channels": (64, 64), "size": (5, 6), "padding": (2, 0), "batch": 14},
    "as much padding as kernel": {"channels": (64, 64), "size": (4, 5), "padding": 2, "batch": 10},
    "maps of one pixel": {"channels": (64, 64), "size": (1, 1), "padding": 1, "batch": 100},
    "maps of two rows": {"channels": (64, 128), "size": (2, 3), "padding": 1, "batch": 50},
    "32 channels": {"channels": (32, 32), "size": (13, 16), "padding": 1, "batch": 4},
    "many blocks": {"channels": (64, 64), "size": (33, 32), "padding": 1, "batch": 3},
    "sums in parts": {"channels": (544, 64), "size": (8, 8), "padding": 1, "batch": 7},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("formats", FORMATS)
@pytest.mark.parametrize("layer", LAYERS)
def test_results_are_those_of_the_oracle(layer, formats, dtype):
    problem = problems.make(**LAYERS[layer], dtype=dtype, formats=FORMATS[formats])
    problems.assert_accurate(problem, problem.run("cpu"))


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
@pytest.mark.parametrize("delta", [0.0, 0.01])
def test_the_end_of_a_tile(delta, relu, bias):
    problem = problems.make(**LAYERS["whole tiles"], relu=relu, bias=bias, delta=delta, formats=(True, True))
    problems.assert_accurate(problem, problem.run("cpu"))


@pytest.mark.parametrize("formats", FORMATS)
@pytest.mark.parametrize("images", [1, 8], ids=["one image", "all images"])
def test_faint_patches_beside_strong_ones_keep_their_digits(images, formats):
    problem = problems.make(**{**LAYERS["whole tiles"], "batch": 8}, formats=FORMATS[formats])
    x = 1e-2 * torch.randn(images, 64, 8, 12)
    problem.input[:images] = torch.where(torch.rand(images, 1, 8, 12) < 0.1, 1e4 * x, x)
    problems.settle_gradient(problem)
    problem.grad[:images] *= torch.where(torch.rand(images, 1, 8, 12) < 0.1, 10, 1)
    problems.assert_accurate(problem, problem.run("cpu"))


@pytest.mark.parametrize("formats", FORMATS)
@pytest.mark.parametrize("times", [2, 100])
def test_taps_that_see_little_keep_their_digits(times, formats):
    problem = problems.make(**{**LAYERS["whole tiles"], "batch": 8}, formats=FORMATS[formats])
    problem.input[..., ::4] *= times
    problems.settle_gradient(problem)
    problem.grad[..., ::4] *= times
    problems.assert_accurate(problem, problem.run("cpu"))


UNEVEN_WEIGHTS = {
    "a strong row": lambda w: w[:, :, 0].mul_(1e3),
    "a faint centre": lambda w: w[:, :, 1, 1].mul_(1e-3),
    "one tap": lambda w: w.view(*w.shape[:2], 9)[..., 1:].zero_(),
    "zeros": lambda w: w.zero_(),
}


@pytest.mark.parametrize("layer", ["whole tiles", "maps of one pixel"])
@pytest.mark.parametrize("change", UNEVEN_WEIGHTS)
def test_taps_that_weigh_little_keep_their_digits(change, layer):
    problem = problems.make(**LAYERS[layer], bias=False)
    UNEVEN_WEIGHTS[change](problem.weight)
    problems.settle_gradient(problem)
    problems.assert_accurate(problem, problem.run("cpu"))


@pytest.mark.parametrize("row", [0, -1])
@pytest.mark.parametrize("column", [0, -1])
def test_a_gradient_that_is_nan_reaches_the_taps_that_see_it(row, column):
    problem = problems.make(**LAYERS["whole tiles"], formats=(True, True))
    problem.input = problems.in_format(torch.randn(problem.input.shape), channels_last=True)
    problem.grad[0, 3, row, column] = float("nan")
    actual, expected = (problem.run(backend)["weight"].isnan() for backend in ("cpu", "reference"))
    assert torch.equal(actual, expected)
    assert actual.any()
    assert not actual.all()


@pytest.mark.parametrize("formats", FORMATS)
def test_a_patch_of_zeros_gives_the_bias_whatever_lies_beside_it(formats):
    problem = problems.make(**{**LAYERS["whole tiles"], "batch": 8}, formats=FORMATS[formats])
    problem.input[3, :, :4, :5] = 0
    y = problem.run("cpu")["output"]
    assert torch.equal(y[3, :, :3, :4], problem.bias[:, None, None].expand(64, 3, 4))


@pytest.mark.parametrize("formats", FORMATS)
@pytest.mark.parametrize("relu", [None, "relu"])
def test_nan_and_infinity_reach_only_what_sees_them(relu, formats):
    problem = problems.make(**{**LAYERS["whole tiles"], "batch": 8}, formats=FORMATS[formats])
    problem.input[2, 1, 3, 7], problem.input[5, 2, 6, 2] = float("nan"), float("inf")
    problem.grad[1, 3, 4, 4] = float("nan")
    call = {"padding": 1, "activation": relu}

    def results(backend):
        x = problem.input.clone().requires_grad_()
        y = problems.PUBLIC[2](x, *problem.operands[1:], **call, backend=backend)
        return y.detach(), *torch.autograd.grad(y, x, problem.grad)

    for actual, expected in zip(results("cpu"), results("reference"), strict=True):
        assert torch.equal(actual.isfinite(), expected.isfinite())
        assert not actual.isfinite().all()


@pytest.mark.parametrize("formats", FORMATS)
def test_the_same_bits_whatever_the_threads_and_the_batch(formats):
    problem = problems.make(channels=(64, 64), size=(16, 16), padding=1, batch=6, formats=FORMATS[formats])
    problem.input[:2] = torch.randn(2, 64, 16, 16)
    many, threads = problem.run("cpu"), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = problem.run("cpu")
        part = problems.PUBLIC[2](problem.input[2:5], *problem.operands[1:], padding=1, backend="cpu")
    finally:
        torch.set_num_threads(threads)
    for name, result in many.items():
        assert torch.equal(result, one[name]), name
    assert torch.equal(many["output"][2:5], part)


@pytest.mark.parametrize(
    "needed", [("input",), ("weight",), ("alpha",), ("bias",), ("input", "alpha"), ("weight", "bias")]
)
def test_each_gradient_alone_is_that_of_all_together(needed):
    problem = problems.make(**LAYERS["whole tiles"], formats=(True, True))
    names = ("input", "weight", "bias", "alpha")
    leaves = [t.clone().requires_grad_(name in needed) for name, t in zip(names, problem.operands, strict=True)]
    y = problems.PUBLIC[2](*leaves, padding=1, backend="cpu")
    parts = torch.autograd.grad(y, [leaf for leaf in leaves if leaf.requires_grad], problem.grad)
    expected = problem.run("cpu")
    for name, part in zip([name for name in names if name in needed], parts, strict=True):
        torch.testing.assert_close(part, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("formats", FORMATS)
def test_gradients_are_laid_out_as_what_they_are_of(formats):
    problem = problems.make(**LAYERS["whole tiles"], formats=FORMATS[formats])
    results = problem.run("cpu")
    plain = torch.nn.functional.conv2d(*problem.operands[:3], padding=1)
    problems.assert_laid_out_alike(results["output"], plain)
    problems.assert_laid_out_alike(results["weight"], problem.weight)
