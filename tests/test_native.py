"""The library's own operators, as a LibTorch program calls them."""

import oracle
import pytest
import torch

from ccn_kernels.backends import extension


@pytest.fixture(autouse=True)
def library():
    assert extension.missing("cpu") is None


def operands(dtype=torch.float64):
    x, w = torch.randn(2, 4, 6, 5, dtype=dtype), torch.randn(6, 2, 3, 3, dtype=dtype)
    x[0, :, :4] = 0
    return x, w, torch.randn(6, dtype=dtype), torch.tensor(1.5, dtype=dtype)


def forward(x, w, b, alpha, stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=2, relu=False, save=True):
    return torch.ops.ccn_native.compact_conv(
        x, w, b, alpha, list(stride), list(padding), list(dilation), groups, 0.01, relu, save
    )


def backward(grad, x, w, b, alpha, y, z, norm, mask=(True, True, True, True)):
    return torch.ops.ccn_native.compact_conv_backward(
        grad, x, w, b, alpha, y, z, norm, [1, 1], [1, 1], [1, 1], 2, 0.01, list(mask)
    )


def test_output_quotient_and_norm_equal_the_oracle_s():
    x, w, b, alpha = operands()
    y, z, norm = forward(x, w, b, alpha)
    torch.testing.assert_close(y, oracle.compact_conv(x, w, b, alpha, padding=1, groups=2))
    torch.testing.assert_close(z, oracle.compact_conv(x, w, None, 1.0, padding=1, groups=2))
    torch.testing.assert_close(norm, oracle.patch_norms(x, (3, 3), padding=1, groups=2))


def test_the_quotient_is_saved_only_on_request():
    assert forward(*operands(), save=False)[1].numel() == 0


@pytest.mark.parametrize("index", range(4))
def test_only_the_gradients_asked_for_are_computed(index):
    x, w, b, alpha = operands()
    y, z, norm = forward(x, w, b, alpha)
    grad = torch.randn_like(y)
    whole = backward(grad, x, w, b, alpha, None, z, norm)
    part = backward(grad, x, w, b, alpha, None, z, norm, [i == index for i in range(4)])
    assert [p.numel() > 0 for p in part] == [i == index for i in range(4)]
    torch.testing.assert_close(part[index], whole[index])


def test_nothing_is_recorded_for_autograd():
    x, w, b, alpha = operands()
    y, _, _ = forward(x.requires_grad_(), w.requires_grad_(), b, alpha)
    assert torch.is_grad_enabled()
    assert y.grad_fn is None or "WarnNotImplemented" in y.grad_fn.name()


@pytest.mark.parametrize(
    "change",
    [
        {"groups": 3},
        {"groups": 1},
        {"stride": (0, 1)},
        {"padding": (-1, 0)},
        {"dilation": (1, 0)},
        {"stride": (1,)},
        {"stride": (1, 1, 1), "padding": (0, 0, 0), "dilation": (1, 1, 1)},
        {"padding": (0, 0), "dilation": (4, 4)},
    ],
    ids=str,
)
def test_a_call_that_does_not_fit_is_refused(change):
    with pytest.raises(RuntimeError):
        forward(*operands(), **change)


def test_gradients_that_need_the_quotient_do_not_go_without_it():
    x, w, b, alpha = operands()
    y, _, norm = forward(x, w, b, alpha, save=False)
    with pytest.raises(RuntimeError):
        backward(torch.randn_like(y), x, w, b, alpha, None, None, norm)
