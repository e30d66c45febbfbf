"""l2_softmax_loss against equation 1 of the paper, written out: a sum over samples, in fp64."""

import math

import pytest
import torch

from ccn_kernels import CompactLinear
from ccn_kernels.functional import l2_softmax_loss


def equation_1(features, weight, bias, target, alpha, delta=0.0, smoothing=0.0):
    """-1/M sum_i sum_k t_ik log softmax(W (alpha f_i / (||f_i|| + delta)) + b)_k, one number at a time."""
    classes, total = weight.shape[0], torch.zeros((), dtype=torch.float64)
    for f, label in zip(features.double(), target.tolist(), strict=True):
        length = f.square().sum().sqrt() + delta
        logits = [(weight[k].double() * f).sum() * alpha / length + bias[k].double() for k in range(classes)]
        partition = sum(logit.exp() for logit in logits).log()
        for k, logit in enumerate(logits):
            share = smoothing / classes + (1 - smoothing) * (k == label)
            total = total - share * (logit - partition)
    return total / len(features)


@pytest.fixture
def problem():
    features, weight, bias = torch.randn(6, 5), torch.randn(4, 5), torch.randn(4)
    return features, weight, bias, torch.tensor([0, 3, 1, 2, 3, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("delta", [0.0, 0.01])
@pytest.mark.parametrize("alpha", [1.0, 16.0])
def test_the_loss_is_equation_1(problem, alpha, delta, smoothing):
    found = l2_softmax_loss(*problem, alpha, delta=delta, label_smoothing=smoothing)
    assert found.shape == ()
    torch.testing.assert_close(found, equation_1(*problem, alpha, delta, smoothing).float())


def test_gradients_are_those_of_equation_1(problem):
    *operands, target = problem
    alpha = torch.tensor(3.0)

    def gradients(function):
        leaves = [t.detach().double().requires_grad_() for t in (*operands, alpha)]
        return torch.autograd.grad(function(*leaves[:3], target, leaves[3]), leaves)

    for found, want in zip(gradients(l2_softmax_loss), gradients(equation_1), strict=True):
        torch.testing.assert_close(found, want)


def test_features_are_scaled_so_that_their_length_does_not_matter(problem):
    features, *rest = problem
    scaled = features * torch.rand(6, 1).add(0.1).mul(1e3)
    torch.testing.assert_close(l2_softmax_loss(scaled, *rest, 4.0), l2_softmax_loss(features, *rest, 4.0))


def test_without_a_bias_and_with_leading_axes(problem):
    features, weight, _, target = problem
    found = l2_softmax_loss(features.reshape(2, 3, 5), weight, None, target.reshape(2, 3), 2.0)
    torch.testing.assert_close(found, equation_1(features, weight, torch.zeros(4), target, 2.0).float())


def test_one_ninth_of_smoothing_gives_the_papers_targets():
    """{0.9, 1/90} for ten classes: with one logit raised, the loss can be written down."""
    weight = torch.zeros(10, 2)
    weight[3, 0] = 1.0
    found = l2_softmax_loss(torch.tensor([[2.0, 0.0]]), weight, None, torch.tensor([3]), 1.0, label_smoothing=1 / 9)
    partition = math.log(math.e + 9)
    torch.testing.assert_close(found, torch.tensor(0.9 * (partition - 1) + 9 / 90 * partition))


def test_zero_features_lose_the_logarithm_of_the_number_of_classes_and_have_a_gradient_of_zero():
    features = torch.zeros(2, 5, requires_grad=True)
    found = l2_softmax_loss(features, torch.randn(4, 5), None, torch.tensor([0, 1]), 8.0)
    found.backward()
    torch.testing.assert_close(found.detach(), torch.tensor(math.log(4)))
    assert features.grad.abs().max() == 0


def test_it_is_the_loss_of_a_network_that_ends_in_a_compact_linear_layer(problem):
    features, weight, bias, target = problem
    layer = CompactLinear(5, 4, alpha=2.0)
    layer.load_state_dict({"weight": weight, "bias": bias, "alpha": torch.tensor(2.0)})
    expected = torch.nn.functional.cross_entropy(layer(features), target)
    torch.testing.assert_close(l2_softmax_loss(features, weight, bias, target, layer.alpha, delta=0.01), expected)


def test_every_operand_is_differentiable():
    shapes = [(2, 3, 5), (4, 5), (4,), ()]
    leaves = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    target = torch.randint(0, 4, (2, 3))
    assert torch.autograd.gradcheck(lambda f, w, b, a: l2_softmax_loss(f, w, b, target, a), leaves)


@pytest.mark.parametrize(
    ("changes", "kind", "names"),
    [
        ({"features": torch.zeros(6, 3)}, RuntimeError, "input|weight"),
        ({"alpha": torch.ones(2)}, RuntimeError, "alpha"),
        ({"alpha": "1"}, TypeError, "alpha"),
        ({"delta": -1.0}, ValueError, "delta"),
        ({"bias": torch.zeros(3)}, RuntimeError, "bias"),
    ],
    ids=str,
)
def test_wrong_arguments(problem, changes, kind, names):
    names_of = ("features", "weight", "bias", "target")
    arguments = {**dict(zip(names_of, problem, strict=True)), "alpha": 1.0, **changes}
    with pytest.raises(kind, match=names):
        l2_softmax_loss(**arguments)
