"""The oracle itself, against PyTorch's convolutions in fp64 and by finite differences."""

import oracle
import problems
import pytest
import torch
import torch.nn.functional as F

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

GEOMETRIES = [
    (0, {}),
    (1, {"kernel": 3, "stride": 2, "padding": 2, "dilation": 2}),
    (2, {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0), "groups": 2}),
    (2, {"kernel": (4, 3), "padding": "same", "dilation": (1, 2)}),
    (2, {"kernel": 2, "padding": "valid", "groups": 4, "channels": (4, 8)}),
    (3, {"kernel": (1, 3, 2), "size": 5, "stride": (1, 2, 1), "padding": 1}),
]


@pytest.mark.parametrize(("rank", "geometry"), GEOMETRIES)
def test_the_oracle_is_the_two_branch_module(rank, geometry):
    problem = problems.make(rank, dtype=torch.float64, **geometry)
    expected, naive = problem.oracle(), problem.naive()
    for name, value in expected.items():
        torch.testing.assert_close(value, naive[name], rtol=1e-11, atol=1e-11, msg=name)


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padding_modes_are_those_of_pad(mode):
    x, w = torch.randn(2, 3, 6, 5, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    padded = F.pad(x, (1, 1, 2, 2), mode=mode)
    expected = oracle.compact_conv(padded, w)
    torch.testing.assert_close(oracle.compact_conv(x, w, padding=(2, 1), padding_mode=mode), expected)


@pytest.mark.parametrize("delta", [0.0, 0.01])
@pytest.mark.parametrize("relu", [False, True])
def test_gradients_are_those_of_finite_differences(delta, relu):
    operands = [torch.randn(s, dtype=torch.float64) for s in [(2, 2, 4, 4), (4, 1, 3, 2), (4,), ()]]
    operands = [t.requires_grad_() for t in operands]
    settings = {"stride": 2, "padding": 1, "groups": 2, "delta": delta, "relu": relu}
    assert torch.autograd.gradcheck(lambda *ts: oracle.compact_conv(*ts, **settings), operands)


@pytest.mark.parametrize(("delta", "expected"), [(0.0, 0.0), (0.01, 100.0)])
def test_at_a_zero_patch_the_gradient_is_the_weight_over_delta(delta, expected):
    x, w = torch.zeros(1, 2, 3, dtype=torch.float64), torch.randn(1, 2, 3, dtype=torch.float64)
    found = oracle.gradients(x, w, None, torch.tensor(1.0), torch.ones(1, 1, 1), delta=delta)
    torch.testing.assert_close(found["input"], w * expected)
    assert found["output"].item() == 0
    assert found["weight"].abs().max() == 0


def test_magnitudes_bound_what_they_are_of():
    problem = problems.make(2, padding=1, stride=2, relu=True, dtype=torch.float64)
    expected, worst, noise = problem.oracle(), problem.magnitudes(1), problem.magnitudes(2)
    for name, value in expected.items():
        assert (value.abs() <= worst[name] * (1 + 1e-12)).all(), name
        assert (noise[name] <= worst[name] * (1 + 1e-12)).all(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_uninitialised_memory_is_poisoned(dtype):
    """What the fixture in conftest.py promises; without it, a backend that forgets to write might pass by luck."""
    fresh = torch.empty(100, dtype=dtype)
    assert (fresh.isnan() if dtype.is_floating_point else fresh == torch.iinfo(dtype).max).all()
