"""Accuracy of every backend's forward and gradients against the fp64 oracle, zero patches included."""

import problems
import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
CHUNK_BYTES = 8 << 20  # the C++ backend's budget for the input and output of the images it takes at once

# Kernels, strides, dilations, groups (depthwise among them), paddings, and odd channel counts.
IMAGES = {
    "1x1": {"kernel": 1},
    "1x1-strided": {"kernel": 1, "stride": 2, "channels": (16, 5)},
    "1x1-padded": {"kernel": 1, "padding": 1, "groups": 2},
    "3x3": {"kernel": 3},
    "3x3-one-channel": {"kernel": 3, "padding": 1, "channels": (1, 7)},
    "3x3-rgb": {"kernel": 3, "padding": 1, "channels": (3, 16)},
    "3x3-one-output": {"kernel": 3, "padding": 1, "channels": (5, 1)},
    "3x3-strided": {"kernel": 3, "stride": 2, "padding": 1, "size": (9, 8)},
    "3x3-dilated": {"kernel": 3, "dilation": 2, "padding": 2},
    "3x3-grouped": {"kernel": 3, "padding": 1, "groups": 3, "channels": (9, 6)},
    "3x3-depthwise": {"kernel": 3, "padding": 1, "groups": 5, "channels": (5, 5)},
    "3x3-depthwise-doubled": {"kernel": 3, "stride": 2, "groups": 4, "channels": (4, 8)},
    "3x3-everything": {"kernel": 3, "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2},
    "3x3-stride-over-kernel": {"kernel": 3, "stride": 4, "padding": 1, "size": (11, 9)},
    "3x3-all-padding": {"kernel": 3, "padding": 3, "size": 2},
    "5x5": {"kernel": 5, "padding": 2, "channels": (7, 11)},
    "5x5-strided": {"kernel": 5, "stride": 3, "padding": 4, "dilation": 2, "size": 10},
    "7x7": {"kernel": 7, "stride": 2, "padding": 3, "channels": (3, 8), "size": 12},
    "7x7-whole-image": {"kernel": 7, "size": 7},
    "1x5": {"kernel": (1, 5), "padding": (0, 2), "stride": (1, 2)},
    "4x3": {"kernel": (4, 3), "padding": (1, 0), "dilation": (2, 1), "size": (10, 6)},
    "same": {"kernel": 3, "padding": "same", "channels": (33, 17)},
    "same-even": {"kernel": (2, 4), "padding": "same"},
    "same-even-dilated": {"kernel": (4, 3), "padding": "same", "dilation": (3, 2), "groups": 2},
    "valid": {"kernel": (2, 3), "padding": "valid", "stride": 2},
    "delta-0": {"kernel": 3, "padding": 1, "delta": 0.0},
    "delta-1": {"kernel": 3, "stride": 2, "delta": 1.0},
}
OTHERS = {
    "linear": (0, {"channels": (13, 5)}),
    "linear-wide": (0, {"channels": (200, 130), "batch": 7}),  # more weights than one task of the reduction takes
    "linear-delta-0": (0, {"channels": (8, 3), "delta": 0.0}),
    "1-d": (1, {"kernel": 5, "padding": 2, "size": 17}),
    "1-d-everything": (1, {"kernel": 3, "stride": 2, "padding": 4, "dilation": 3, "groups": 2, "size": 15}),
    "1-d-same-even": (1, {"kernel": 4, "padding": "same", "channels": (1, 3)}),
    "3-d": (3, {"kernel": 3, "padding": 1, "size": 5}),
    "3-d-everything": (
        3,
        {"kernel": (2, 3, 1), "stride": (1, 2, 1), "padding": (1, 2, 0), "dilation": (2, 1, 1), "groups": 2, "size": 6},
    ),
    "3-d-same-even": (3, {"kernel": (2, 3, 4), "padding": "same", "size": 4, "channels": (3, 2)}),
    "3-d-depthwise": (3, {"kernel": 2, "groups": 3, "channels": (3, 3), "size": 4}),
}
SETTINGS = {"plain": {"bias": False}, "bias": {}, "relu": {"relu": True}, "relu-plain": {"relu": True, "bias": False}}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("formats", [(False, False), (True, True)], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", IMAGES)
def test_images(backend, shape, formats, setting, dtype):
    problem = problems.make(2, dtype=dtype, formats=formats, **{**IMAGES[shape], **SETTINGS[setting]})
    problems.assert_accurate(problem, problem.run(backend))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("shape", OTHERS)
def test_other_ranks(backend, shape, setting, dtype):
    rank, settings = OTHERS[shape]
    problem = problems.make(rank, dtype=dtype, **{**settings, **SETTINGS[setting]})
    problems.assert_accurate(problem, problem.run(backend))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("formats", [(True, False), (False, True)], ids=["input", "weight"])
@pytest.mark.parametrize("rank", [2, 3])
def test_one_operand_in_channels_last(backend, rank, formats, dtype):
    problem = problems.make(rank, size=5, padding=1, groups=2, dtype=dtype, formats=formats, relu=True)
    problems.assert_accurate(problem, problem.run(backend))


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)  # the reference takes every batch whole
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("formats", "relu"), [((False, False), True), ((True, True), False)], ids=["contiguous-relu", "channels_last"]
)
def test_a_batch_of_several_uneven_chunks(backend, formats, relu, dtype):
    images = 340 if dtype == torch.float64 else 680
    problem = problems.make(
        2, (3, 9), 24, 2, batch=images, padding="same", dtype=dtype, formats=formats, relu=relu, groups=3
    )
    elements = problem.input[0].numel() + problem.grad[0].numel()
    chunks = images * elements * (8 if dtype == torch.float64 else 4) / CHUNK_BYTES
    assert 2 < chunks < 3
    assert images % 3
    problems.assert_accurate(problem, problem.run(backend))


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_linear_batch_of_several_uneven_chunks(backend, dtype):
    problem = problems.make(0, (40, 24), batch=100_001, dtype=dtype, relu=True)
    problems.assert_accurate(problem, problem.run(backend))


@pytest.mark.parametrize("formats", [(False, False), (True, True)], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
def test_an_image_larger_than_one_task_of_the_backward_pass(backend, formats, relu):
    """Bias gradients are summed over segments of pixels, the last of them uneven."""
    problem = problems.make(2, (1, 2), (70, 67), 3, batch=2, formats=formats, relu=relu)
    problems.assert_accurate(problem, problem.run(backend))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1e4, 1e-6])
@pytest.mark.parametrize("rank", [0, 2])
def test_activations_whose_squares_leave_16_bits(backend, rank, scale, dtype):
    """1e4 squared overflows fp16; 1e-6 squared vanishes in it, and is among its subnormals before it is squared."""
    problem = problems.make(rank, kernel=3, channels=(8, 8), scale=scale, dtype=dtype, alpha=1.0)
    if dtype == torch.float16:  # normal draws reach past fp16's largest number
        problem.input = problem.input.clamp(-6e4, 6e4)
    problems.assert_accurate(problem, problem.run(backend))


@pytest.mark.parametrize("groups", [1, 32])
def test_dilated_bf16_with_channels_innermost(backend, groups):
    """On CPUs that multiply bf16, oneDNN's weight gradient is wrong here (PyTorch 2.13)."""
    formats, geometry = (True, True), {"kernel": (2, 4), "dilation": (2, 3), "padding": (0, 1), "groups": groups}
    problem = problems.make(2, (32, 32), (41, 38), dtype=torch.bfloat16, formats=formats, batch=2, **geometry)
    problems.assert_accurate(problem, problem.run(backend))


@pytest.mark.parametrize("scale", [1e15, 1e-15])
def test_activations_at_the_ends_of_the_contract(backend, scale):
    problem = problems.make(2, kernel=3, padding=1, scale=scale)
    problems.assert_accurate(problem, problem.run(backend))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
@pytest.mark.parametrize("delta", [0.0, 0.01])
def test_an_all_zero_input_gives_exactly_the_bias(backend, delta, rank, dtype):
    problem = problems.make(rank, size=4, delta=delta, dtype=dtype)
    problem.input = torch.zeros_like(problem.input)
    results = problem.run(backend)
    bias = problem.bias.reshape(-1, *[1] * rank)
    assert torch.equal(results["output"], bias.expand_as(results["output"]))
    assert results["weight"].abs().max() == 0
    assert results["alpha"] == 0
    problems.assert_accurate(problem, results)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rank", [0, 2])
def test_patches_of_one_number(backend, rank, dtype):
    """With delta = 0 their gradient is 0: what is left of it are roundings, PyTorch's and ours."""
    problem = problems.make(rank, (1, 3), 5, 1, delta=0.0, dtype=dtype)
    problems.assert_accurate(problem, problem.run(backend))
