"""Wrong arguments: the class of error that F.conv2d raises for the same mistake, naming the argument."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ccn_kernels import functional, reference

X, W, B = torch.zeros(2, 4, 8, 8), torch.zeros(6, 4, 3, 3), torch.zeros(6)
GROUPED = torch.zeros(6, 2, 3, 3)


def conv2d(function, input=X, weight=W, bias=B, **settings):
    return function(input, weight, bias, **settings)


# Mistakes that F.conv2d knows too: what is passed, and what the message must name.
SHARED = {
    "an input of rank 2": ({"input": torch.zeros(4, 8)}, "input"),
    "an input of rank 5": ({"input": torch.zeros(2, 4, 8, 8, 8)}, "input"),
    "a scalar input": ({"input": torch.zeros(())}, "input"),
    "a weight of rank 3": ({"weight": torch.zeros(6, 4, 3)}, "weight"),
    "a weight of rank 5": ({"weight": torch.zeros(6, 4, 3, 3, 3)}, "weight|input"),
    "channels that differ": ({"input": torch.zeros(2, 5, 8, 8)}, "input.*channels"),
    "channels of another number of groups": ({"groups": 2}, "input.*channels|weight.*channels"),
    "groups that do not divide the outputs": ({"weight": torch.zeros(7, 2, 3, 3), "bias": None, "groups": 2}, "groups"),
    "groups of 0": ({"groups": 0}, "groups"),
    "negative groups": ({"groups": -1}, "groups"),
    "fractional groups": ({"groups": 1.5}, "groups"),
    "groups as text": ({"groups": "2"}, "groups"),
    "several groups": ({"groups": (2, 2)}, "groups"),
    "a stride of 0": ({"stride": 0}, "stride"),
    "a negative stride": ({"stride": -1}, "stride"),
    "a negative stride on one axis": ({"stride": (1, -2)}, "stride"),
    "a fractional stride": ({"stride": 1.5}, "stride"),
    "a fractional stride on one axis": ({"stride": (1, 1.5)}, "stride"),
    "three strides": ({"stride": (1, 1, 1)}, "stride"),
    "a stride of None": ({"stride": None}, "stride"),
    "a stride as text": ({"stride": "2"}, "stride"),
    "a stride of True": ({"stride": True}, "stride"),
    "a range of strides": ({"stride": range(1, 3)}, "stride"),
    "a stride of 65 bits": ({"stride": 2**64}, "stride"),
    "strides of 65 bits": ({"stride": (1, 2**64)}, "stride"),
    "a stride as text, and a weight of rank 3": ({"stride": "2", "weight": torch.zeros(6, 4, 3)}, "stride"),
    "groups of None, and channels that differ": ({"groups": None, "input": torch.zeros(2, 5, 8, 8)}, "groups"),
    "a negative padding": ({"padding": -1}, "padding"),
    "a negative padding on one axis": ({"padding": (-1, 1)}, "padding"),
    "a fractional padding": ({"padding": 0.5}, "padding"),
    "three paddings": ({"padding": (1, 1, 1)}, "padding"),
    "four paddings": ({"padding": [1, 1, 1, 1]}, "padding"),
    "a padding unknown by name": ({"padding": "full"}, "padding"),
    "same padding with a stride": ({"padding": "same", "stride": 2}, "padding"),
    "same padding with a stride on one axis": ({"padding": "same", "stride": (1, 2)}, "padding"),
    "a dilation of 0": ({"dilation": 0}, "dilation"),
    "a negative dilation": ({"dilation": -1}, "dilation"),
    "a fractional dilation": ({"dilation": 1.5}, "dilation"),
    "three dilations": ({"dilation": (1, 1, 1)}, "dilation"),
    "a kernel larger than the input": ({"input": torch.zeros(2, 4, 2, 8)}, "weight|kernel"),
    "a kernel larger than the input, unbatched": ({"input": torch.zeros(4, 8, 2)}, "weight|kernel"),
    "a dilated kernel larger than the input": ({"dilation": 4}, "weight|kernel"),
    "a kernel larger than the padded input": (
        {"input": torch.zeros(2, 4, 3, 3), "dilation": 3, "padding": 1},
        "kernel",
    ),
    "no input channels": ({"input": torch.zeros(2, 0, 8, 8), "weight": torch.zeros(6, 0, 3, 3)}, "weight"),
    "no output channels": ({"weight": torch.zeros(0, 4, 3, 3), "bias": None}, "weight"),
    "an input of no rows": ({"input": torch.zeros(2, 4, 0, 8), "padding": 2}, "input"),
    "a kernel of no extent": ({"weight": torch.zeros(6, 4, 0, 3)}, "weight"),
    "a weight of another dtype": ({"weight": W.double()}, "weight"),
    "an input of another dtype": ({"input": X.half()}, "weight|input"),
    "a bias of another dtype": ({"bias": B.double()}, "bias"),
    "a bias too short": ({"bias": torch.zeros(5)}, "bias"),
    "a bias of rank 2": ({"bias": torch.zeros(6, 1)}, "bias"),
    "a bias of rank 0": ({"bias": torch.zeros(())}, "bias"),
    "a weight on another device": ({"weight": W.to("meta")}, "device"),
    "an input on another device": ({"input": X.to("meta")}, "device"),
    "a bias on another device": ({"bias": B.to("meta")}, "device"),
    "an input that is no tensor": ({"input": np.zeros((2, 4, 8, 8))}, "input"),
    "an input of None": ({"input": None}, "input"),
    "a weight that is no tensor": ({"weight": [1.0]}, "weight"),
    "a bias that is no tensor": ({"bias": 1.0}, "bias"),
}
# F.conv2d takes these on some device or in some version, or has no such check; an error is wanted.
LENIENT = {
    "a weight on another device",
    "an input on another device",
    "a bias on another device",
    "a kernel of no extent",
    "no input channels",
    "a bias of another dtype",
}

# Mistakes of ours alone, or of dtypes that F.conv2d takes on a CPU.
OURS = {
    "an integer input": ({"input": X.long(), "weight": W.long(), "bias": B.long()}, RuntimeError, "input"),
    "a boolean input": ({"input": X.bool()}, RuntimeError, "input"),
    "a complex input": ({"input": X.cfloat(), "weight": W.cfloat(), "bias": None}, RuntimeError, "input"),
    "a sparse input": ({"input": X.to_sparse()}, RuntimeError, "input"),
    "an alpha of one axis": ({"alpha": torch.ones(1)}, RuntimeError, "alpha"),
    "an alpha a channel": ({"alpha": torch.ones(6)}, RuntimeError, "alpha"),
    "an integer tensor for alpha": ({"alpha": torch.tensor(1)}, RuntimeError, "alpha"),
    "a complex tensor for alpha": ({"alpha": torch.tensor(1j)}, RuntimeError, "alpha"),
    "alpha on another device": ({"alpha": torch.ones((), device="meta")}, RuntimeError, "alpha"),
    "alpha as text": ({"alpha": "1"}, TypeError, "alpha"),
    "an alpha of None": ({"alpha": None}, TypeError, "alpha"),
    "a complex alpha": ({"alpha": 1j}, TypeError, "alpha"),
    "a list for alpha": ({"alpha": [1.0]}, TypeError, "alpha"),
    "a negative delta": ({"delta": -0.01}, ValueError, "delta"),
    "a delta of NaN": ({"delta": float("nan")}, ValueError, "delta"),
    "an infinite delta": ({"delta": float("inf")}, ValueError, "delta"),
    "delta as text": ({"delta": "0"}, TypeError, "delta"),
    "a tensor for delta": ({"delta": torch.tensor(0.1)}, TypeError, "delta"),
    "an unknown activation": ({"activation": "gelu"}, ValueError, "activation"),
    "an activation that is no name": ({"activation": F.relu}, ValueError, "activation"),
}
BACKEND = {
    "an unknown backend": ({"backend": "fastest"}, ValueError, "backend"),
    "a backend that is no name": ({"backend": 1}, ValueError, "backend"),
    "an empty backend": ({"backend": ""}, ValueError, "backend"),
}


def error_of(function, settings):
    try:
        conv2d(function, **settings)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("function", [functional.compact_conv2d, reference.compact_conv2d], ids=["public", "reference"])
@pytest.mark.parametrize("mistake", SHARED)
def test_mistakes_raise_what_conv2d_raises(mistake, function):
    settings, names = SHARED[mistake]
    theirs = error_of(F.conv2d, settings)
    assert theirs is not None or mistake in LENIENT
    classes = (
        RuntimeError
        if theirs is None
        else next(c for c in (TypeError, ValueError, RuntimeError) if isinstance(theirs, c))
    )
    with pytest.raises(classes, match=names) as caught:
        conv2d(function, **settings)
    assert type(caught.value) is classes


@pytest.mark.parametrize("function", [functional.compact_conv2d, reference.compact_conv2d], ids=["public", "reference"])
@pytest.mark.parametrize("mistake", OURS)
def test_mistakes_of_our_own_arguments(mistake, function):
    settings, kind, names = OURS[mistake]
    with pytest.raises(kind, match=names):
        conv2d(function, **settings)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_input_is_refused():
    with pytest.raises(RuntimeError, match="input"):
        conv2d(functional.compact_conv2d, torch.nested.nested_tensor([X[0], X[0]]))


@pytest.mark.parametrize("mistake", BACKEND)
def test_mistakes_in_the_backend(mistake):
    settings, kind, names = BACKEND[mistake]
    with pytest.raises(kind, match=names):
        conv2d(functional.compact_conv2d, **settings)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("mistake", ["channels that differ", "a kernel larger than the input", "a negative padding"])
def test_mistakes_raise_alike_whatever_the_backend(mistake, backend):
    settings, names = SHARED[mistake]
    with pytest.raises(RuntimeError, match=names):
        conv2d(functional.compact_conv2d, backend=backend, **settings)


@pytest.mark.parametrize(
    ("function", "plain", "good", "bad"),
    [
        (functional.compact_conv1d, F.conv1d, ((2, 4, 8), (6, 4, 3)), ((2, 4, 8, 8), (6, 4, 3))),
        (functional.compact_conv1d, F.conv1d, ((4, 8), (6, 4, 3)), ((2, 5, 8), (6, 4, 3))),
        (functional.compact_conv3d, F.conv3d, ((2, 4, 5, 5, 5), (6, 4, 3, 3, 3)), ((2, 4, 5, 5), (6, 4, 3, 3))),
        (functional.compact_conv3d, F.conv3d, ((4, 5, 5, 5), (6, 4, 3, 3, 3)), ((2, 4, 5, 5, 2), (6, 4, 3, 3, 3))),
        (functional.compact_linear, F.linear, ((2, 4), (6, 4)), ((2, 5), (6, 4))),
        (functional.compact_linear, F.linear, ((4,), (6, 4)), ((), (6, 4))),
    ],
)
def test_other_ranks_check_their_shapes(function, plain, good, bad):
    assert function(*(torch.zeros(shape) for shape in good)).shape == plain(*(torch.zeros(s) for s in good)).shape
    tensors = [torch.zeros(shape) for shape in bad]
    with pytest.raises(RuntimeError):
        plain(*tensors)
    with pytest.raises(RuntimeError, match=r"input|weight"):
        function(*tensors)


def test_a_linear_weight_must_have_two_axes():
    with pytest.raises(RuntimeError, match="weight"):
        functional.compact_linear(torch.zeros(2, 4), torch.zeros(4))


@pytest.mark.parametrize(
    "settings",
    [
        {"stride": [2]},
        {"stride": torch.Size([2, 1])},
        {"stride": np.int64(2)},
        {"padding": (1,), "dilation": [2, 1]},
        {"groups": np.int32(2), "weight": GROUPED},
        {"padding": "valid", "stride": 3},
        {"padding": "same"},
        {"bias": None},
        {"input": torch.zeros(4, 8, 8)},
        {"input": torch.zeros(0, 4, 8, 8)},
    ],
    ids=str,
)
def test_whatever_conv2d_takes_is_taken(backend, settings):
    y = conv2d(functional.compact_conv2d, **settings, backend=backend)
    assert y.shape == conv2d(F.conv2d, **settings).shape


@pytest.mark.parametrize("alpha", [2, 2.0, torch.tensor(2.0), torch.nn.Parameter(torch.tensor(2.0)), np.float64(2)])
def test_alpha_may_be_any_number(backend, alpha):
    y = conv2d(functional.compact_conv2d, input=X + 1, weight=W + 1, alpha=alpha, backend=backend)
    assert torch.equal(y, conv2d(functional.compact_conv2d, input=X + 1, weight=W + 1, alpha=2.0, backend=backend))


@pytest.mark.parametrize("delta", [0, 0.0, 1, np.float64(0.5)])
def test_delta_may_be_any_number_that_is_not_negative(backend, delta):
    assert conv2d(functional.compact_conv2d, delta=delta, backend=backend).abs().max() == 0
