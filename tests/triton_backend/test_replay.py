"""Eager calls that are like earlier ones: their passes are replayed, for their own operands."""

import functools

import calls
import oracle
import problems
import pytest
import torch
from calls import DEVICE

from ccn_kernels import known
from ccn_kernels.backends.triton import replay
from ccn_kernels.functional import compact_conv2d, compact_linear

LAST = (True, True)


@pytest.fixture(autouse=True)
def forget():
    """Nothing is known when a test begins; nor after a call of this."""

    def all_calls():
        known._known.clear()
        replay._recipes.clear()

    all_calls()
    return all_calls


def forward_recipes():
    return [recipe for spec in known._known.values() for recipe in spec.recipes.values()]


VARIANTS = {
    "first": {},
    "delta": {"delta": 1.0},
    "relu": {"relu": True},
    "plain": {"bias": False},
    "dilated": {"dilation": 2, "padding": 2},
    "grouped": {"channels": (32, 16), "groups": 2},
    "strided": {"stride": 2},
    "contiguous": {"formats": (False, False)},
    "input in channels_last": {"formats": (True, False)},
    "another batch": {"batch": 5},
    "wide": {"channels": (128, 16), "size": 3},  # enough steps to be split
    "depthwise": {"channels": (8, 8), "groups": 8},
    "fp16": {"dtype": torch.float16},
    "rgb": {"channels": (3, 16)},
}


def test_a_call_that_was_made_before_is_replayed_for_other_data():
    """Eager calls of a known kind skip what shapes alone decide; calls of another kind do not get their launches."""
    for _ in range(2):
        for name, settings in VARIANTS.items():
            problem = problems.make(2, **{"channels": (16, 16), "size": 5, "padding": 1, "formats": LAST, **settings})
            here = calls.placed(problem)
            activation = "relu" if problem.relu else None
            with torch.no_grad():
                y = compact_conv2d(
                    *here.operands, **here.geometry, delta=here.delta, activation=activation, backend="triton"
                )
            expected = oracle.compact_conv(
                *problem.operands, delta=problem.delta, relu=problem.relu, **problem.geometry
            )
            eps = torch.finfo(problem.input.dtype).eps
            assert problems.relative_error(y.cpu(), expected) < 8 * eps, name
    recipes = forward_recipes()
    assert len(recipes) == len(VARIANTS)
    assert all(recipes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("settings", [{}, {"stride": 2}, {"channels": (8, 8), "groups": 8}], ids=str)
def test_training_is_replayed_too(settings, last, dtype):
    """Whatever ATen copies or computes between launches: fp16's scale, the layout that a descriptor needs."""
    problem = problems.make(
        2, **{"channels": (16, 16), "size": 6, "padding": 1, "formats": (last, last), "dtype": dtype, **settings}
    )
    calls.public(problem)
    recipes = [*forward_recipes(), *replay._recipes.values()]
    assert len(recipes) == 2
    assert all(recipes)
    problems.assert_accurate(problem, calls.public(problem))


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
@pytest.mark.parametrize("rank", [2, 3])
def test_what_aten_lays_out_otherwise_than_before_is_read_right(rank):
    """Results of its convolutions are channels_last or not by switches that a program may turn between two calls."""
    library = torch.backends.mkldnn if calls.INTERPRETED else torch.backends.cudnn
    problem = problems.make(rank, (8, 16), 6, stride=2, padding=1, formats=LAST)
    for enabled in (True, False, False, True):
        with library.flags(enabled=enabled):
            problems.assert_accurate(problem, calls.public(problem))


@pytest.mark.parametrize("offset", [0, 1, 4], ids="{} elements on".format)
def test_replayed_calls_heed_where_their_operands_lie(offset):
    """Descriptors need aligned addresses: the same shapes elsewhere are another kind of call."""
    problem = calls.placed(problems.make(2, (16, 16), 5, padding=1, formats=LAST))
    expected = compact_conv2d(*problem.operands, padding=1, backend="triton")
    x, w = problem.input, problem.weight
    moved = []
    for tensor in (x, w):
        whole = torch.zeros(tensor.numel() + offset, device=DEVICE)
        moved.append(whole.as_strided(tensor.shape, tensor.stride(), offset).copy_(tensor))
    with torch.no_grad():
        for _ in range(2):
            y = compact_conv2d(*moved, problem.bias, problem.alpha, padding=1, backend="triton")
            torch.testing.assert_close(y, expected, rtol=0, atol=0)


@pytest.mark.parametrize("rank", [0, 2])
def test_one_tensor_in_two_places_teaches_no_replay(rank, forget):
    """Its launches do not say which of the two they took; the next call's are two tensors."""
    shape = (6, 6) if rank == 0 else (3, 3, 3, 3)
    call = functools.partial((compact_linear, compact_conv2d)[rank // 2], backend="triton")
    x, w = (torch.randn(shape, device=DEVICE) for _ in range(2))
    expected = call(x, w)
    forget()
    alpha = torch.ones((), device=DEVICE)
    with torch.no_grad():
        for operands in ((x, x), (x, x), (x, w), (x, w)):
            y = call(*operands, None, alpha)
        assert torch.equal(y, expected)


def test_an_incoming_gradient_that_is_the_input_teaches_no_replay(forget):
    x, grad = (torch.randn(2, 3, 5, 5, device=DEVICE) for _ in range(2))
    w = torch.randn(3, 3, 3, 3, device=DEVICE, requires_grad=True)

    def gradient(incoming):
        return torch.autograd.grad(compact_conv2d(x, w, padding=1, backend="triton"), w, incoming)[0]

    expected = gradient(grad)
    forget()
    gradient(x)
    assert torch.equal(gradient(grad), expected)


def test_what_inference_mode_was_first_to_call_is_trained():
    """The quotient that such a forward pass does without is one tensor for all calls, and training saves it."""
    x, alpha = torch.randn(2, 3, 5, 5, device=DEVICE), torch.ones((), device=DEVICE)
    w = torch.randn(4, 3, 3, 3, device=DEVICE, requires_grad=True)
    with torch.inference_mode():
        compact_conv2d(x, w, None, alpha, backend="triton")
    compact_conv2d(x, w, None, alpha, backend="triton").sum().backward()


def test_the_weights_gradient_of_no_images_is_zero_every_time():
    """Memory is NaN until it is written, and no launch writes anything."""
    x = torch.randn(0, 16, 5, 5, device=DEVICE)
    w = torch.randn(8, 16, 3, 3, device=DEVICE, requires_grad=True)
    for _ in range(3):
        (gradient,) = torch.autograd.grad(compact_conv2d(x, w, padding=1, backend="triton").sum(), w)
        assert gradient.eq(0).all()
