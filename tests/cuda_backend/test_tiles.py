"""Every kernel of csrc/cuda against the oracle: each way that a call may take through them, in every type."""

import problems
import pytest
import torch
from emulator import emulated

DEVICE = emulated.device()
NHWC = (True, True)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
WAYS = {  # what decides: channels in whole chunks, tiles of 128 outputs, splits of K, phases of a stride, groups
    "gathered": {"channels": (3, 20), "padding": 1},
    "gathered, channels_last": {"channels": (3, 20), "padding": 1, "formats": NHWC},
    "chunks": {"channels": (16, 24), "padding": 1, "formats": NHWC},
    "chunks, weight contiguous": {"channels": (16, 24), "padding": 1, "formats": (True, False)},
    "packed from contiguous": {"channels": (32, 40), "padding": 1},
    "packed, odd channels": {"channels": (21, 35), "padding": 1, "formats": NHWC},
    "two tiles of outputs": {"channels": (16, 150), "padding": 1, "formats": NHWC, "size": 5},
    "three tiles of places": {"channels": (16, 16), "size": (11, 12), "formats": NHWC},
    "K split": {"channels": (128, 72), "padding": 1, "size": 4, "formats": NHWC},
    "K split, contiguous": {"channels": (128, 72), "padding": 1, "size": 4, "relu": True},
    "stride 2": {"channels": (16, 24), "stride": 2, "padding": 1, "size": 9, "formats": NHWC},
    "phases without taps": {"channels": (16, 24), "stride": 3, "kernel": 2, "size": 9, "formats": NHWC},
    "stride beyond the input": {"channels": (16, 24), "stride": 9, "padding": 1, "size": 4},
    "stride and dilation share a factor": {"channels": (16, 8), "stride": 4, "dilation": 6, "padding": 6, "size": 14},
    "dilation": {"channels": (16, 24), "dilation": 2, "padding": 2, "formats": NHWC},
    "groups of tiles": {"channels": (48, 80), "groups": 2, "padding": 1, "formats": NHWC},
    "groups of tiles, odd": {"channels": (42, 34), "groups": 2, "padding": 1},
    "depthwise": {"channels": (6, 6), "groups": 6, "padding": 1},
    "depthwise, channels_last": {"channels": (6, 12), "groups": 6, "stride": 2, "padding": 1, "formats": NHWC},
    "few channels a group": {"channels": (12, 8), "groups": 4, "dilation": 2, "padding": 2, "formats": NHWC},
    "1x1": {"channels": (16, 24), "kernel": 1, "formats": NHWC},
    "1x1, stride 2": {"channels": (16, 24), "kernel": 1, "stride": 2, "formats": NHWC},
    "linear": {"rank": 0, "channels": (200, 130), "batch": 7},
    "linear, odd": {"rank": 0, "channels": (13, 5)},
    "1-D": {"rank": 1, "channels": (16, 10), "kernel": 5, "padding": 2, "size": 40},
    "3-D": {"rank": 3, "channels": (16, 10), "size": 4, "padding": 1, "stride": (2, 1, 3)},
    "one image": {"channels": (16, 24), "batch": 1, "padding": 1},
}


def run(problem):
    return problems.run_on(problem, DEVICE, "cuda")


@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_results_are_the_oracles(way, dtype, relu):
    problem = problems.make(dtype=dtype, **{"relu": relu, **WAYS[way]})
    problems.assert_accurate(problem, run(problem))


@pytest.mark.parametrize("way", WAYS)
def test_tf32_rounds_its_operands_and_nothing_else(way):
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "tf32"
    problem = problems.make(**WAYS[way])
    results, expected = run(problem), problem.oracle()
    noise, worst = problem.magnitudes(2), problem.magnitudes(1)
    for name, want in expected.items():
        rounding = 2**-10 * (want.abs() + noise[name]) + torch.finfo(torch.float32).eps * worst[name]
        assert ((results[name].double() - want).abs() <= 4 * rounding).all(), name


def test_fp32_is_rounded_to_tf32_by_permission_alone():
    problem, errors = problems.make(channels=(64, 64), padding=1, formats=NHWC), {}
    expected = problem.oracle()["output"]
    for precision in ("ieee", "tf32"):
        torch.backends.cudnn.conv.fp32_precision = precision
        errors[precision] = problems.relative_error(run(problem)["output"], expected)
    assert errors["ieee"] < 1e-6
    assert 1e-5 < errors["tf32"] < 1e-3


@pytest.mark.parametrize("scale", [1e-6, 1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_inputs_of_any_magnitude(scale, dtype):
    """Squares of 1e4 overflow fp16; those of 1e-6 vanish in it."""
    problem = problems.make(channels=(16, 24), padding=1, dtype=dtype, scale=scale, formats=NHWC, delta=0.01 * scale)
    results, expected = run(problem), problem.oracle()
    for name in ("output", "weight", "bias"):
        assert problems.relative_error(results[name], expected[name]) < 4 * torch.finfo(dtype).eps, name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("strides", problems.STRIDED)
def test_inputs_and_gradients_of_any_strides(strides, dtype):
    problem = problems.make(channels=(4, 6), size=(7, 6), padding=1, dtype=dtype)
    problem.input = problems.STRIDED[strides]().to(dtype)
    problems.settle_gradient(problem)
    problem.grad = problem.grad[:1].expand_as(problem.grad)
    problems.assert_accurate(problem, run(problem))


@pytest.mark.parametrize("asked", range(1, 16))
def test_only_what_is_asked_for_is_computed_and_right(asked):
    problem = problems.placed(problems.make(channels=(16, 24), padding=1, dtype=torch.float64), DEVICE)
    full = problem.run("cuda")
    names = ("input", "weight", "bias", "alpha")
    operands = [t.detach().requires_grad_(bool(asked >> i & 1)) for i, t in enumerate(problem.operands)]
    output = problems.functional.compact_conv2d(*operands, padding=1, backend="cuda")
    wanted = [t for t in operands if t.requires_grad]
    found = iter(torch.autograd.grad(output, wanted, problem.grad))
    for name, operand in zip(names, operands, strict=True):
        if operand.requires_grad:
            torch.testing.assert_close(next(found), full[name])


def test_nan_reaches_only_the_patches_that_see_it():
    problem = problems.make(channels=(16, 24), padding=1, formats=NHWC)
    clean = run(problem)["output"]
    problem.input[2, 3, 4, 4] = float("nan")
    output = run(problem)["output"]
    touched = torch.zeros_like(output, dtype=torch.bool)
    touched[2, :, 3:6, 3:6] = True
    assert output[touched].isnan().all()
    assert torch.equal(output[~touched], clean[~touched])
