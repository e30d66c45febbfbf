"""Bad input: the class of error that F.conv2d raises, and a message that names the argument."""

import pytest
import torch
import torch.nn.functional as F

from ccn_kernels import functional, reference

X, W, B = torch.randn(2, 4, 8, 8), torch.randn(6, 4, 3, 3), torch.randn(6)

# (arguments that differ from a good call, what the message must name)
LIKE_CONV2D = {
    "rank of input": ({"input": X[0, 0]}, "input"),
    "rank of weight": ({"weight": W[0]}, "weight"),
    "channels": ({"input": X[:, :3]}, "input"),
    "groups that do not divide": ({"groups": 4, "weight": torch.randn(6, 1, 3, 3)}, "groups"),
    "no groups": ({"groups": 0}, "groups"),
    "negative groups": ({"groups": -1}, "groups"),
    "zero stride": ({"stride": 0}, "stride"),
    "negative stride": ({"stride": (1, -1)}, "stride"),
    "fractional stride": ({"stride": 1.5}, "stride"),
    "too many strides": ({"stride": (1, 1, 1)}, "stride"),
    "negative padding": ({"padding": -1}, "padding"),
    "fractional padding": ({"padding": (0.5, 1)}, "padding"),
    "unknown padding": ({"padding": "full"}, "padding"),
    "same with stride": ({"padding": "same", "stride": 2}, "padding"),
    "zero dilation": ({"dilation": 0}, "dilation"),
    "fractional dilation": ({"dilation": 2.0}, "dilation"),
    "kernel larger than the input": ({"input": X[:, :, :2]}, "kernel"),
    "dilated kernel larger than the input": ({"dilation": 4}, "kernel"),
    "dtypes": ({"weight": W.double()}, "weight"),
    "dtype of bias": ({"bias": B.double()}, "bias"),
    "shape of bias": ({"bias": torch.randn(5)}, "bias"),
    "rank of bias": ({"bias": torch.randn(6, 1)}, "bias"),
    "no tensor": ({"input": [[1.0]]}, "input"),
    "no tensor for weight": ({"weight": 3}, "weight"),
    "no tensor for bias": ({"bias": 1.0}, "bias"),
}
OURS_ALONE = {
    "integers": ({"input": X.int(), "weight": W.int(), "bias": B.int()}, RuntimeError, "input"),
    "complex": ({"input": X.cfloat(), "weight": W.cfloat(), "bias": B.cfloat()}, RuntimeError, "input"),
    "devices": ({"weight": W.to("meta")}, RuntimeError, "weight"),
    "device of alpha": ({"alpha": torch.ones((), device="meta")}, RuntimeError, "alpha"),
    "sparse": ({"input": X.to_sparse()}, RuntimeError, "input"),
    "shape of alpha": ({"alpha": torch.ones(1)}, RuntimeError, "alpha"),
    "integer alpha": ({"alpha": torch.ones((), dtype=torch.int)}, RuntimeError, "alpha"),
    "text for alpha": ({"alpha": "1"}, TypeError, "alpha"),
    "negative delta": ({"delta": -0.01}, ValueError, "delta"),
    "NaN for delta": ({"delta": float("nan")}, ValueError, "delta"),
    "infinite delta": ({"delta": float("inf")}, ValueError, "delta"),
    "text for delta": ({"delta": "0"}, TypeError, "delta"),
    "activation": ({"activation": "gelu"}, ValueError, "activation"),
    "empty kernel": ({"weight": torch.randn(6, 4, 0, 3)}, RuntimeError, "weight"),
}


@pytest.fixture(params=[functional.compact_conv2d, reference.compact_conv2d], ids=["functional", "reference"])
def conv(request):
    return request.param


@pytest.mark.parametrize("mistake", LIKE_CONV2D)
def test_the_same_class_of_error_as_conv2d(conv, mistake):
    change, name = LIKE_CONV2D[mistake]
    arguments = {"input": X, "weight": W, "bias": B, **change}
    with pytest.raises((RuntimeError, TypeError, ValueError)) as theirs:
        F.conv2d(**arguments)
    with pytest.raises(theirs.type, match=name):
        conv(**arguments)


@pytest.mark.parametrize("mistake", OURS_ALONE)
def test_mistakes_that_conv2d_does_not_know(conv, mistake):
    change, error, name = OURS_ALONE[mistake]
    with pytest.raises(error, match=name):
        conv(**{"input": X, "weight": W, "bias": B, **change})


@pytest.mark.parametrize("bad", [torch.tensor(1.0), torch.randn(3, 5)])
def test_linear_features_must_match(bad):
    with pytest.raises(RuntimeError, match="input"):
        functional.compact_linear(bad, torch.randn(2, 4))


@pytest.mark.parametrize("alpha", [2, 2.0, torch.tensor(2.0), torch.tensor(2.0, dtype=torch.float64)])
def test_alpha_may_be_a_number_or_a_scalar_tensor(alpha):
    torch.testing.assert_close(
        functional.compact_conv2d(X, W, B, alpha), functional.compact_conv2d(X, W, None, 1.0) * 2 + B.view(-1, 1, 1)
    )


def test_one_entry_serves_every_axis_and_index_types_are_ints():
    import numpy as np

    expected = functional.compact_conv2d(X, W, stride=(2, 2), padding=(1, 1))
    assert torch.equal(functional.compact_conv2d(X, W, stride=[2], padding=np.int64(1)), expected)
