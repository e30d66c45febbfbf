"""Calls like ones that were made before skip what was decided then; calls that only look like them do not."""

import functools

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from ccn_kernels import functional, known
from ccn_kernels.functional import compact_conv2d, compact_linear

X, W, B, A = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3), torch.randn(4), torch.tensor(1.5)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(known, "_known", {})


@pytest.fixture
def decided(monkeypatch):
    """The calls that had to be decided about."""
    found = []
    resolve = functional.resolve
    monkeypatch.setattr(functional, "resolve", lambda *args: (found.append(args), resolve(*args))[1])
    return found


def test_a_call_like_another_is_not_decided_again_and_gives_the_same(decided):
    first = compact_conv2d(X, W, B, A, padding=1)
    others = [X.clone(), W.clone(), B.clone(), A.clone()]
    with torch.no_grad():
        assert torch.equal(compact_conv2d(*others, padding=1), first)
    others[1].requires_grad_()
    again = compact_conv2d(*others, padding=1)
    assert torch.equal(again, first)
    again.sum().backward()
    assert others[1].grad is not None
    assert len(decided) == 1


def test_settings_are_the_same_whether_they_are_one_object_or_two(decided):
    two, other = (tuple([2, 2]) for _ in range(2))
    compact_conv2d(X, W, B, A, padding=two, stride=two)
    compact_conv2d(X, W, B, A, padding=two, stride=other)
    assert len(decided) == 1


@pytest.mark.parametrize(
    ("args", "settings"),
    [
        ((X.double(), W.double(), B.double(), A), {"padding": 1}),
        ((X, W, None, A), {"padding": 1}),
        ((X[:1], W, B, A), {"padding": 1}),
        ((X.contiguous(memory_format=torch.channels_last), W, B, A), {"padding": 1}),
        ((X, W, B, A), {"padding": (1, 0)}),
        ((X, W, B, A), {"padding": 1, "activation": "relu"}),
        ((X, W, B, A), {"padding": 1, "delta": 0.02}),
        ((X, W, B, A), {"padding": 1, "backend": "reference"}),
    ],
)
def test_whatever_differs_is_decided_anew(args, settings, decided):
    compact_conv2d(X, W, B, A, padding=1)
    result = compact_conv2d(*args, **settings)
    assert len(decided) == 2
    expected = compact_conv2d(*args, **{**settings, "backend": "reference"})
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"stride": True}, TypeError),
        ({"padding": (1, True)}, TypeError),
        ({"groups": 1.0}, TypeError),
        ({"bias": B.double()}, RuntimeError),
        ({"alpha": torch.ones(1)}, RuntimeError),
        ({"input": X.to_sparse()}, RuntimeError),
        ({"input": torch.nested.nested_tensor([X[0], X[1]])}, RuntimeError),
        ({"weight": W[:, :2]}, RuntimeError),
        ({"activation": "tanh"}, ValueError),
        ({"backend": "nobody"}, ValueError),
        ({"backend": ["cpu"]}, ValueError),
    ],
    ids=str,
)
def test_mistakes_are_found_after_a_right_call(change, error):
    call = {"input": X, "weight": W, "bias": B, "alpha": A, "stride": 1, "padding": (1, 1), "groups": 1}
    compact_conv2d(**call)
    with pytest.raises(error):
        compact_conv2d(**{**call, **change})


@pytest.mark.parametrize("mistake", [np.int8(-1), np.array([255], np.uint8), b"\xff"], ids=repr)
def test_mistakes_of_the_same_bytes_as_a_right_number_are_found(mistake):
    compact_conv2d(X, W, B, A, padding=np.uint8(255))
    with pytest.raises((RuntimeError, TypeError), match="padding"):
        compact_conv2d(X, W, B, A, padding=mistake)


def test_what_is_cast_padded_or_reshaped_is_not_kept(decided):
    calls = [
        functools.partial(compact_conv2d, X, W, B, 1.5),
        functools.partial(compact_conv2d, X[0], W, B, A),
        functools.partial(compact_conv2d, X, torch.randn(4, 3, 2, 2), B, A, padding="same"),
        functools.partial(compact_linear, torch.randn(2, 3, 4), torch.randn(5, 4), None, A),
    ]
    for call in calls:
        assert torch.equal(call(), call())
    assert len(decided) == 2 * len(calls)
    assert not known._known


def test_autocast_is_asked_every_time():
    plain = compact_conv2d(X, W, B, A)
    with torch.autocast("cpu", torch.bfloat16):
        assert compact_conv2d(X, W, B, A).dtype == torch.bfloat16
    assert torch.equal(compact_conv2d(X, W, B, A), plain)


def test_the_environment_is_asked_every_time(decided, monkeypatch):
    compact_conv2d(X, W, B, A)
    monkeypatch.setenv("CCN_BACKEND", "reference")
    compact_conv2d(X, W, B, A)
    assert len(decided) == 2
    monkeypatch.setenv("CCN_BACKEND", "nobody")
    with pytest.raises(ValueError, match="CCN_BACKEND"):
        compact_conv2d(X, W, B, A)


def test_transforms_and_modes_are_never_known(decided):
    compact_conv2d(X, W, B, A)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X, torch.ones_like(X))
        assert forward_ad.unpack_dual(compact_conv2d(dual, W, B, A)).tangent is not None
    assert torch.func.vmap(lambda x: compact_conv2d(x, W, B, A))(X[None]).shape == (1, 2, 4, 3, 3)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert compact_conv2d(mode.from_tensor(X), W, B, A).shape == (2, 4, 3, 3)
    assert len(decided) == 4


def test_no_more_is_kept_than_a_bound(monkeypatch):
    monkeypatch.setattr(known, "MOST", 3)
    for batch in range(1, 8):
        compact_conv2d(torch.randn(batch, 3, 5, 5), W, B, A)
        assert len(known._known) <= 3


def test_a_signature_copies_nothing_that_is_copied_on_write():
    lazy = torch._lazy_clone(X)
    assert known.signature(2, (lazy, W, B, A), (1, 1, 1, 1, 0.01, None), None) is not None
    assert torch._C._is_cow_tensor(lazy)
