"""Mixed precision; CUDA's autocast is tested where there is a GPU (tests/gpu)."""

import copy

import mixed_precision
import oracle
import pytest
import torch
import torch.nn.functional as F

from ccn_kernels import CompactConv2d

SECTION = "Mixed precision"
NARROW = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


@NARROW
@pytest.mark.behaviour(
    SECTION, "autocast to fp16 and bf16 with `GradScaler`: trains, gradients in the parameters' dtype"
)
def test_training_under_autocast(network, dtype):
    exact, x, target = copy.deepcopy(network), torch.randn(16, 3, 8, 8), torch.arange(16) % 5
    losses = mixed_precision.train(network, x, target, dtype)
    assert losses[-1] < losses[0]
    torch.testing.assert_close(losses[0].float(), F.cross_entropy(exact(x), target), rtol=0.05, atol=0)


@pytest.mark.parametrize("given", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@NARROW
@pytest.mark.behaviour(SECTION, "dtype of the output under autocast, whatever the input's")
def test_dtype_of_the_output(kind, dtype, given):
    layer = kind(3, 4, 3).to(torch.float64 if given == torch.float64 else torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(torch.randn(2, 3, 6, 6).to(given))
        with torch.autocast("cpu", enabled=False):
            inner = layer(torch.randn(2, 3, 6, 6).to(layer.weight.dtype))
    assert y.dtype == (torch.float64 if given == torch.float64 else dtype)
    assert inner.dtype == layer.weight.dtype


@pytest.mark.parametrize("scale", [1e4, 1e-6])
@NARROW
@pytest.mark.behaviour(
    SECTION,
    "norms of 16-bit activations of 1e4 and 1e-6",
    conv="has none",
    ours="kept in fp32: no overflow, the direction is kept",
)
def test_extreme_activations(backend, scale, dtype):
    layer = CompactConv2d(8, 4, 3, delta=0.0, backend=backend).to(dtype)
    x = (torch.rand(2, 8, 5, 5) * scale).to(dtype)  # fp16 has a dozen numbers below 1e-6
    want = oracle.compact_conv(x, layer.weight, layer.bias, layer.alpha.double(), delta=0.0)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(layer(x).double(), want, rtol=4 * eps, atol=4 * eps)
