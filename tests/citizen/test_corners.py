"""Inputs and argument kinds that models really pass."""

import problems
import pytest
import torch


@pytest.mark.parametrize("name", problems.STRIDED)
@pytest.mark.behaviour("Inputs", "expanded, sliced, permuted and channels_last inputs; same strides out")
def test_strides(kind, name):
    layer, x = kind(4, 6, 3, padding=1), problems.STRIDED[name]()
    y = layer(x)
    problems.assert_laid_out_alike(y, torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=1))
    torch.testing.assert_close(y, layer(x.contiguous()))
