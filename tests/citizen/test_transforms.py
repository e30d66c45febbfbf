"""torch.func, forward mode, higher derivatives."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, functionalize, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

SECTION = "Derivatives and transforms"
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own, on its first jvp


@pytest.fixture
def layer(kind):
    return kind(2, 2, 2, padding=1).double()


@pytest.fixture
def call(layer):
    """The layer as a function of input and parameters, and those."""
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    return lambda x, p=parameters: functional_call(layer, p, (x,)), parameters


def image(*batch):
    return torch.randn(*batch, 2, 3, 3, dtype=torch.float64)


@pytest.mark.behaviour(SECTION, "`gradcheck` and `gradgradcheck` through the layer")
def test_finite_differences(layer, call):
    function, parameters = call
    leaves = [image(1).requires_grad_(), *(p.clone().requires_grad_() for p in parameters.values())]

    def of_leaves(x, *values):
        return function(x, dict(zip(parameters, values, strict=True)))

    assert torch.autograd.gradcheck(of_leaves, leaves)
    assert torch.autograd.gradgradcheck(of_leaves, leaves)


@pytest.mark.behaviour(SECTION, "`vmap` over inputs, and over an ensemble's parameters")
def test_vmap(call):
    function, parameters = call
    x = image(3, 2)
    torch.testing.assert_close(vmap(function)(x), torch.stack([function(part) for part in x]))
    assert vmap(function)(x[:0]).numel() == 0
    many = {name: torch.stack([p, p + 1, -p]) for name, p in parameters.items()}
    found = vmap(lambda p: function(x[0], p))(many)
    for index in range(3):
        torch.testing.assert_close(found[index], function(x[0], {name: p[index] for name, p in many.items()}))


@pytest.mark.behaviour(SECTION, "per-sample gradients: `vmap(grad(...))` of `functional_call`")
def test_per_sample_gradients(call):
    function, parameters = call

    def loss(p, x):
        return function(x[None], p).square().sum()

    x = image(4)
    found = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for index, sample in enumerate(x):
        for name, part in grad(loss)(parameters, sample).items():
            torch.testing.assert_close(found[name][index], part)


@pytest.mark.behaviour(
    SECTION, "`torch.compile(fullgraph=True)` of `vmap`, `grad`, `vjp`", ours="works, by the reference's operators"
)
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_transforms(call):
    function, parameters = call

    def loss(p, x):
        return function(x[None], p).square().sum()

    x = image(4)
    for transformed in (
        lambda x: vmap(lambda part: function(part[None]))(x),
        lambda x: vmap(grad(loss), in_dims=(None, 0))(parameters, x),
        lambda x: vjp(function, x)[1](torch.ones(4, 2, 4, 4, dtype=x.dtype)),
    ):
        compiled = torch.compile(transformed, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), transformed(x))


@pytest.mark.behaviour(SECTION, "`vjp`, `jacrev`")
def test_reverse_mode(call):
    function, _ = call
    x = image(1)
    y, pull = vjp(function, x)
    jacobian = jacrev(function)(x)
    weights = torch.randn_like(y)
    torch.testing.assert_close(pull(weights)[0], torch.tensordot(weights, jacobian, y.dim()))


@pytest.mark.behaviour(
    SECTION, "forward mode: `jvp`, `jacfwd`, `linearize`, `forward_ad`", ours="works, by the reference's operators"
)
def test_forward_mode(layer, call):
    function, _ = call
    x, direction = image(1), image(1)
    jacobian = jacrev(function)(x)
    expected = torch.tensordot(jacobian, direction, x.dim())
    torch.testing.assert_close(jvp(function, (x,), (direction,))[1], expected)
    torch.testing.assert_close(jacfwd(function)(x), jacobian)
    torch.testing.assert_close(linearize(function, x)[1](direction), expected)
    with forward_ad.dual_level():
        y = layer(forward_ad.make_dual(x, direction))
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, expected)


@pytest.mark.behaviour(SECTION, "`hessian` (forward over reverse), and reverse over reverse")
def test_second_derivatives(call):
    function, _ = call

    def loss(x):
        return function(x).pow(3).sum()

    x = image(1)
    found = hessian(loss)(x)
    torch.testing.assert_close(found, jacrev(jacrev(loss))(x))
    torch.testing.assert_close(found, torch.autograd.functional.hessian(loss, x))
    assert found.abs().max() > 0


@pytest.mark.behaviour(
    SECTION,
    "`functionalize`",
    ours='RuntimeError, PyTorch\'s: it knows no `autograd.Function`; `backend="reference"` works',
)
def test_functionalize(kind):
    layer, x = kind(3, 4, 3), torch.randn(2, 3, 6, 6)
    if kind is not nn.Conv2d:
        with pytest.raises(RuntimeError, match="Functionalize rule"):
            functionalize(layer)(x)
        layer.backend = "reference"
    torch.testing.assert_close(functionalize(layer)(x), layer(x))


@pytest.mark.behaviour(SECTION, "a gradient penalty trains: double backward in eager code")
def test_a_gradient_penalty(network):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    x, penalties = torch.randn(6, 3, 8, 8, requires_grad=True), []
    for _ in range(5):
        optimizer.zero_grad()
        (slope,) = torch.autograd.grad(network(x).square().sum(), x, create_graph=True)
        penalties.append(slope.square().sum())
        penalties[-1].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    assert penalties[-1] < penalties[0]
