"""Bounds against what they bound: points of a region, exact Jacobians, dense matrices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ccn_kernels import CompactConv2d, CompactLinear
from ccn_kernels.models import Center
from ccn_kernels.robustness.bounds.compact import bend, slope, spread
from ccn_kernels.robustness.bounds.regions import Region
from ccn_kernels.robustness.bounds.rows import Convolution
from ccn_kernels.robustness.certified import METHODS, Certifier

DELTAS = st.sampled_from([1e-3, 0.01, 1.0])
SIZES = st.floats(-3, 1).map(lambda power: 10**power)
SEEDS = st.integers(0, 10**6)


pytestmark = pytest.mark.usefixtures("one_thread")


def f(p, delta):
    return p / (p.norm() + delta)


def pair(seed, length, step):
    generator = torch.Generator().manual_seed(seed)
    c, move = torch.randn(2, 5, dtype=torch.float64, generator=generator)
    return length * c / c.norm(), step * move / move.norm()


def around_zero(c, step):
    """norm, change, least of patches no further than a step away"""
    return c.norm(), step * (1 + 1e-12), (c.norm() - step * (1 + 1e-12)).clamp(min=0)


@given(SEEDS, SIZES, SIZES, DELTAS)
@settings(deadline=None, max_examples=200)
def test_the_quotient_moves_no_further_than_its_bounds(seed, length, step, delta):
    c, move = pair(seed, length, step)
    known = norm, change, least = around_zero(c, torch.tensor(step, dtype=torch.float64))
    for share in (1.0, 0.5, 0.01):
        moved = (f(c + share * move, delta) - f(c, delta)).norm()
        assert moved <= (1 + 1e-9) * slope(*known, delta) * share * step
        assert moved <= (1 + 1e-9) * spread(*known, delta)
        p = c + share * move
        bent = p.norm() - norm - c @ (share * move) / norm
        assert -1e-12 <= bent <= bend(norm, change, least) + 1e-12


@given(SEEDS, SIZES, SIZES, DELTAS)
@settings(deadline=None, max_examples=50)
def test_two_patches_are_as_far_apart_as_theorem_2_says(seed, length, step, delta):
    c, move = pair(seed, length, step)
    p = c + move
    a, b = c.norm() + delta, p.norm() + delta
    squared = (step**2 - (a - b) ** 2 * (1 - delta**2 / (a * b))) / (a * b)
    torch.testing.assert_close((f(p, delta) - f(c, delta)).square().sum(), squared, rtol=1e-6, atol=1e-12)


@given(SEEDS, SIZES, SIZES, DELTAS)
@settings(deadline=None, max_examples=50)
def test_theorem_4_is_an_identity(seed, length, step, delta):
    c, move = pair(seed, length, step)
    w = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    d = c.norm() + delta
    jacobian = torch.func.jacrev(f)(c, delta)
    remainder = w @ (f(c + move, delta) - f(c, delta) - jacobian @ move)
    eta = (c + move).norm() - c.norm()
    kappa = eta - c @ move / c.norm()
    expected = -(eta * (w @ (f(c + move, delta) - f(c, delta))) + kappa * (w @ f(c, delta))) / d
    torch.testing.assert_close(remainder, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("length", [0.0, 1e-3, 2.0])
def test_the_jacobian_s_norm_is_exactly_one_over_d(length):
    c = length * torch.nn.functional.normalize(torch.arange(1.0, 5.0, dtype=torch.float64), dim=0)
    by_columns = [(f(c + 1e-9 * e, 0.01) - f(c - 1e-9 * e, 0.01)) / 2e-9 for e in torch.eye(4, dtype=torch.float64)]
    norm = torch.linalg.matrix_norm(torch.stack(by_columns), 2)
    torch.testing.assert_close(norm, torch.tensor(1 / (length + 0.01), dtype=torch.float64), rtol=1e-5, atol=0)


def test_patches_of_one_length_reach_the_bound():
    p, q = torch.tensor([[3.0, 4.0], [4.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close((f(p, 0.5) - f(q, 0.5)).norm(), (p - q).norm() / 5.5)


@pytest.mark.parametrize(
    "options",
    [{}, {"padding": 1}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": (0, 2)}, {"groups": 2, "padding": 2}],
)
def test_a_convolution_s_norm_is_bounded_from_above_and_closely(options):
    conv = nn.Conv2d(2, 4, 3, bias=False, **options).double()
    basis = torch.eye(2 * 8 * 8, dtype=torch.float64).view(-1, 2, 8, 8)
    with torch.no_grad():
        exact = torch.linalg.matrix_norm(conv(basis).flatten(1), 2).item()
    rows = Convolution(conv, (8, 8))
    assert exact <= rows.overall <= 1.6 * exact
    overlap = rows.most_seen(torch.ones_like(rows.squares(basis[:1]))).sqrt().item()
    assert exact <= (1 + 1e-9) * rows.patchwise * overlap


def networks():
    """Every layer that is known, in small."""
    convs = {
        "plain": nn.Conv2d(2, 4, 3, padding=1),
        "strided": nn.Conv2d(2, 4, 3, stride=2, bias=False),
        "compact": CompactConv2d(2, 4, 3, padding=1, activation="relu", alpha=3.0),
        "compact, groups": CompactConv2d(2, 4, 3, stride=2, dilation=2, padding=2, groups=2, alpha=-2.0),
    }
    for name, conv in convs.items():
        with torch.no_grad():
            shape = nn.Flatten()(nn.MaxPool2d(2)(conv(torch.zeros(1, 2, 8, 8)))).shape[1]
        norm = nn.BatchNorm2d(4)
        norm.running_mean.normal_()
        norm.weight.data.normal_()
        head = CompactLinear(6, 3, alpha=2.0) if name.startswith("compact") else nn.Linear(6, 3)
        middle = CompactLinear(shape, 6) if name == "plain" else nn.Linear(shape, 6)
        activation = nn.Hardtanh(0.0, 1.0) if name == "strided" else nn.ReLU()
        pool = nn.MaxPool2d(2, 2) if name != "plain" else nn.MaxPool2d(3, 2)
        if name == "plain":
            middle = CompactLinear(4 * 3 * 3, 6)
        yield (
            name,
            nn.Sequential(
                Center(),
                nn.Sequential(conv, norm),
                activation,
                pool,
                nn.Dropout(),
                nn.Flatten(),
                middle,
                nn.ReLU(),
                head,
            ),
        )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["plain", "strided", "compact", "compact, groups"])
@given(seed=SEEDS, size=st.floats(-4, 0).map(lambda power: 10**power), norm=st.sampled_from(["linf", "l2"]))
@settings(deadline=None, max_examples=4)
def test_no_point_of_a_ball_leaves_the_bounds_of_any_layer(name, method, seed, size, norm):
    torch.manual_seed(seed)
    model = dict(networks())[name].double().eval()
    images = torch.rand(2, 2, 8, 8, dtype=torch.float64).mul(1.5).sub(0.25).clamp(0, 1)  # some pixels at 0 and 1
    labels, sizes = torch.tensor([0, 2]), torch.tensor([size, size / 3], dtype=torch.float64)
    certifier = Certifier(model, (2, 8, 8), norm, method)
    count = 24
    moves = torch.randn(count, 2, 2, 8, 8, dtype=torch.float64)
    moves = moves.sign() if norm == "linf" else moves / moves.flatten(2).norm(dim=2)[..., None, None, None]
    share = torch.linspace(0, 1, count, dtype=torch.float64).view(-1, 1, 1, 1, 1)
    points = (images + share * sizes.view(-1, 1, 1, 1) * moves).clamp(0, 1).flatten(0, 1)  # [count * 2, ...]
    with torch.no_grad():
        found = certifier.regions(certifier.path(labels), images, sizes, certifier.slopes(images, labels))
        for region, x in zip(found, activations(certifier.path(labels.repeat(count)), points), strict=True):
            center, low, high, radius = (part.repeat(count, *[1] * (part.dim() - 1)) for part in region)
            assert (low <= x).all()
            assert (x <= high).all()
            assert ((x - center).flatten(1).norm(dim=1) <= radius).all()


def activations(path, x):
    """Of points x, before every layer, and their margins: what a region of one point has for its center."""
    yield x
    for step in path:
        x = step.region(Region(x, x, x, x.new_zeros(len(x)))).center
        yield x


def test_the_centers_are_the_network_s_own_activations():
    torch.manual_seed(0)
    for _, model in networks():
        model = model.double().eval()
        image, label = torch.rand(1, 2, 8, 8, dtype=torch.float64), torch.tensor([1])
        certifier = Certifier(model, (2, 8, 8))
        with torch.no_grad():
            margins = certifier.regions(certifier.path(label), image, torch.zeros(1).double(), None)[-1].center
            logits = model(image)
        torch.testing.assert_close(margins, logits[:, 1:2] - logits[:, [2, 0]])
