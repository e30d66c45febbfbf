"""Derivatives: first and second order, subsets of them, torch.func's transforms, and what 16 bits can spoil."""

import itertools
from functools import partial

import oracle
import problems
import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap

from ccn_kernels import CompactConv2d, CompactLinear
from ccn_kernels.functional import compact_conv2d

NAMES = ("input", "weight", "bias", "alpha")

# Small, for finite differences; fp64 throughout. Few channels: with more, second differences take seconds.
SMALL = {
    "linear": (0, {"channels": (4, 3)}),
    "1-d": (1, {"channels": (2, 2), "size": 6, "kernel": 3, "stride": 2, "padding": 2}),
    "2-d": (2, {"channels": (2, 2), "size": 4, "kernel": 2}),
    "2-d-grouped": (2, {"channels": (2, 4), "size": 4, "kernel": (3, 2), "groups": 2, "padding": 1, "stride": (2, 1)}),
    "2-d-dilated": (2, {"channels": (1, 2), "size": 5, "kernel": 2, "dilation": 2, "padding": "valid"}),
    "2-d-same": (2, {"channels": (1, 2), "size": 3, "kernel": 2, "padding": "same"}),
    "3-d": (3, {"channels": (2, 1), "size": 3, "kernel": (1, 2, 2)}),
}


def small(shape, **settings):
    """A small problem without zero patches, whose norm no finite difference can step across, and its call."""
    rank, fixed = SMALL[shape]
    problem = problems.make(rank, batch=1, dtype=torch.float64, **fixed, **settings)
    return problem, [t.detach().requires_grad_() for t in problem.operands if t is not None]


def caller(problem, backend, **settings):
    activation = "relu" if problem.relu else None

    def call(x, w, *rest):
        bias, alpha = rest if len(rest) == 2 else (None, *rest)
        settings_ = {"delta": problem.delta, "activation": activation, "backend": backend, **settings}
        return problems.PUBLIC[problem.rank](x, w, bias, alpha, **problem.geometry, **settings_)

    return call


@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"relu": True}, {"delta": 0.0}], ids=str)
@pytest.mark.parametrize("shape", SMALL)
def test_first_derivatives_are_those_of_finite_differences(backend, shape, settings):
    problem, leaves = small(shape, **settings)
    assert torch.autograd.gradcheck(caller(problem, backend), leaves)


@pytest.mark.parametrize("settings", [{}, {"bias": False, "relu": True}, {"relu": True}], ids=str)
@pytest.mark.parametrize("shape", SMALL)
def test_second_derivatives_are_those_of_finite_differences(backend, shape, settings):
    problem, leaves = small(shape, **settings)
    assert torch.autograd.gradgradcheck(caller(problem, backend), leaves)


@pytest.mark.parametrize("formats", [(False, False), (True, True)], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("settings", [{}, {"relu": True}, {"groups": 2}, {"bias": False, "delta": 0.0}], ids=str)
def test_every_subset_of_gradients_is_part_of_the_full_set(backend, settings, formats):
    problem = problems.make(2, size=5, padding=1, dtype=torch.float64, formats=formats, **settings)
    call, full = caller(problem, backend), problem.run(backend)
    given = [name for name in NAMES if name in full]
    for count in range(1, len(given) + 1):
        for subset in itertools.combinations(given, count):
            check_subset(problem, call, given, subset, full)


def check_subset(problem, call, given, subset, full):
    """Asked for at once by ``requires_grad``, and later by autograd.grad of a graph that could give all."""
    for required in (subset, given):
        leaves = {name: getattr(problem, name).detach() for name in given}
        for name in required:
            leaves[name].requires_grad_()
        y = call(*leaves.values())
        assert torch.equal(y, full["output"])
        parts = torch.autograd.grad(y, [leaves[name] for name in subset], problem.grad)
        for name, part in zip(subset, parts, strict=True):
            torch.testing.assert_close(part, full[name], rtol=1e-12, atol=1e-12, msg=f"{name} of {subset}")


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("delta", [0.0, 0.01])
def test_gradients_at_zero_patches(backend, delta, dtype, relu, rank):
    """The first image is all zeros: there the gradient is alpha W^T g / delta, and 0 where delta is."""
    problem = problems.make(rank, (4, 6), 5, dtype=dtype, delta=delta, relu=relu)
    results = problem.run(backend)
    problems.assert_accurate(problem, results)
    at_zero = results["input"][0].abs().max()
    assert (at_zero == 0) == (delta == 0)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
def test_second_derivatives_at_zero_patches(backend, relu, rank):
    """A gradient penalty on an image with a black corner must not turn the weights into NaN."""
    problem = problems.make(rank, size=6, dtype=torch.float64, relu=relu)

    def of_penalty(call):
        leaves = [t.detach().requires_grad_() for t in problem.operands]
        y = call(*leaves)
        (penalty,) = torch.autograd.grad(y, leaves[0], problem.grad, create_graph=True)
        return torch.autograd.grad(penalty.square().sum(), leaves, materialize_grads=True)

    found, expected = (of_penalty(call) for call in (caller(problem, backend), partial(oracle_call, relu)))
    for name, part, want in zip(NAMES, found, expected, strict=True):
        torch.testing.assert_close(part, want, msg=name)


def oracle_call(relu, *operands):
    return oracle.compact_conv(*operands, relu=relu)


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_large_bias_does_not_cancel_in_the_gradient_of_the_input(backend, dtype, bias):
    """y - b taken for alpha u / d loses everything at b = 10, alpha = 0.1 in 16 bits."""
    problem = problems.make(2, (16, 16), padding=1, dtype=dtype, alpha=0.1, bias=bias)
    if bias:
        problem.bias = torch.full((16,), 10.0, dtype=dtype)
    found, expected = problem.run(backend)["input"], problem.oracle()["input"]
    seen = problem.input.abs().sum(1, keepdim=True).ne(0).expand_as(found)  # dx of zero patches would drown the rest
    error = problems.relative_error(found[seen], expected[seen])
    assert error <= 2 * torch.finfo(dtype).eps, error


def sample_loss(w, b, alpha, x, backend, activation=None):
    y = compact_conv2d(x, w, b, alpha, padding=1, groups=2, activation=activation, backend=backend)
    return y.square().sum()


@pytest.mark.parametrize("activation", [None, "relu"])
def test_gradients_per_sample_equal_a_loop(backend, activation):
    problem = problems.make(2, size=5, groups=2, padding=1, dtype=torch.float64, batch=4)
    x, w, b, alpha = problem.operands
    per_sample = vmap(grad(sample_loss, argnums=(0, 1, 2, 3)), in_dims=(None, None, None, 0, None, None))
    found = per_sample(w, b, alpha, x, backend, activation)
    for index, image in enumerate(x):
        leaves = [t.detach().requires_grad_() for t in (w, b, alpha, image)]
        expected = torch.autograd.grad(sample_loss(*leaves, backend, activation), leaves)
        for part, want in zip(found, expected, strict=True):
            torch.testing.assert_close(part[index], want)


@pytest.mark.parametrize("dims", [(0, None, None, None), (None, 0, 0, 0), (2, 1, 0, 0), (0, None, None, 0)], ids=str)
def test_vmap_equals_a_loop(backend, dims):
    problem = problems.make(2, size=5, padding=1, dtype=torch.float64)
    stacked = [
        t if dim is None else torch.stack([t, 2 * t, t + 1], dim) for t, dim in zip(problem.operands, dims, strict=True)
    ]
    call = caller(problem, backend)
    found = vmap(call, in_dims=dims)(*stacked)
    for index in range(3):
        expected = call(*(t if dim is None else t.select(dim, index) for t, dim in zip(stacked, dims, strict=True)))
        torch.testing.assert_close(found[index], expected)


def test_an_ensemble_of_linear_layers_under_vmap(backend):
    w, x = torch.randn(4, 3, 5, requires_grad=True), torch.randn(2, 5)
    call = problems.PUBLIC[0]
    found = vmap(lambda weight: call(x, weight, backend=backend))(w)
    expected = torch.stack([call(x, weight, backend=backend) for weight in w])
    torch.testing.assert_close(found, expected)
    (one,) = torch.autograd.grad(found.square().sum(), w)
    (two,) = torch.autograd.grad(expected.square().sum(), w)
    torch.testing.assert_close(one, two)


def test_a_hessian_by_torch_func(backend):
    x = torch.randn(1, 1, 3, 3, dtype=torch.float64)
    w = torch.randn(1, 1, 2, 2, dtype=torch.float64)

    def loss(w):
        return compact_conv2d(x, w, None, 1.5, backend=backend).pow(3).sum()

    found = torch.func.jacrev(grad(loss))(w)
    expected = torch.autograd.functional.hessian(loss, w)
    torch.testing.assert_close(found, expected)
    assert found.abs().max() > 0


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own, on its first jvp
def test_forward_mode_works_in_the_reference_and_is_refused_clearly_elsewhere(backend):
    problem = problems.make(2, size=5, dtype=torch.float64, batch=1)
    call = caller(problem, backend)
    tangents = tuple(torch.randn_like(t) for t in problem.operands)
    if backend == "reference":
        step = 1e-6
        y, found = jvp(call, problem.operands, tangents)
        ahead, behind = (
            call(*(t + s * d for t, d in zip(problem.operands, tangents, strict=True))) for s in (step, -step)
        )
        torch.testing.assert_close(found, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(y, call(*problem.operands))
        return
    with pytest.raises(RuntimeError, match=rf"backend='{backend}' cannot run this call: forward-mode"):
        jvp(call, problem.operands, tangents)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(problem.operands, tangents, strict=True)]
        with pytest.raises(RuntimeError, match="forward-mode"):
            call(*duals)
        with torch.no_grad(), pytest.raises(RuntimeError, match="forward-mode"):
            call(*duals)  # no_grad turns reverse mode off alone: tangents must not be lost in silence


def test_a_step_on_a_gradient_penalty_lowers_it(backend):
    model = torch.nn.Sequential(
        CompactConv2d(2, 4, 3, activation="relu", backend=backend),
        CompactConv2d(4, 4, 3, groups=2, backend=backend),
        torch.nn.Flatten(),
        CompactLinear(16, 1, backend=backend),
    ).double()
    x = torch.randn(5, 2, 6, 6, dtype=torch.float64, requires_grad=True)

    def penalty():
        (part,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return part.square().sum()

    before = penalty()
    before.backward()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "3.bias":  # a constant added to the output has no part in the penalty
                assert parameter.grad is None or parameter.grad.abs().max() == 0
                continue
            assert parameter.grad.isfinite().all(), name
            parameter -= 1e-3 * parameter.grad
    assert penalty() < before


def test_the_backward_pass_leaves_no_graph_unless_asked(backend):
    problem = problems.make(2, padding=1)
    leaves = [t.detach().requires_grad_() for t in problem.operands]
    y = caller(problem, backend)(*leaves)
    plain = torch.autograd.grad(y, leaves, problem.grad, retain_graph=True)
    recorded = torch.autograd.grad(y, leaves, problem.grad, create_graph=True)
    for name, one, two in zip(NAMES, plain, recorded, strict=True):
        assert not one.requires_grad, name
        torch.testing.assert_close(one, two, msg=name)


def test_a_graph_can_be_walked_twice_and_frees_its_tensors(backend):
    problem = problems.make(2, padding=1, relu=True)
    leaves = [t.detach().requires_grad_() for t in problem.operands]
    y = caller(problem, backend)(*leaves)
    first = torch.autograd.grad(y, leaves, problem.grad, retain_graph=True)
    second = torch.autograd.grad(y, leaves, problem.grad)
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match=r"second time|freed"):
        torch.autograd.grad(y, leaves, problem.grad)
