"""TF32 by either generation of PyTorch's switches."""

import pytest
import torch

from ccn_kernels.precision import tf32

CUDNN, MATMUL = torch.backends.cudnn, torch.backends.cuda.matmul


@pytest.fixture
def by_older_switches():
    def older(allowed):
        CUDNN.allow_tf32 = MATMUL.allow_tf32 = allowed

    yield older
    older(False)  # as other tests expect


def precisions():
    return CUDNN.conv.fp32_precision, MATMUL.fp32_precision


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_older_switches_are_put_back(by_older_switches, before, allowed):
    by_older_switches(before)
    with tf32(allowed):
        assert (CUDNN.allow_tf32, MATMUL.allow_tf32) == (allowed, allowed)
    assert (CUDNN.allow_tf32, MATMUL.allow_tf32) == (before, before)


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("before", ["ieee", "tf32"])
def test_newer_switches_are_put_back(by_older_switches, before, allowed):
    """PyTorch refuses to read the older ones once the newer contradict them."""
    by_older_switches(before == "ieee")
    CUDNN.conv.fp32_precision = MATMUL.fp32_precision = before
    with pytest.raises(RuntimeError):
        _ = CUDNN.allow_tf32, MATMUL.allow_tf32
    with tf32(allowed):
        assert precisions() == (("ieee", "tf32")[allowed],) * 2
    assert precisions() == (before, before)
