"""The two-branch module of the paper (figure 4) in plain PyTorch operators.

One branch convolves, the other sums squares over the same patches; the quotient is scaled by alpha. It runs on any
device, differentiates any number of times, and stays finite where a patch is all zeros. It is the ``reference``
backend, and what double backward differentiates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import Call, resolve
from .spec import ConvSpec, memory_format, norm_dtype, seen_pixels, settled, without_autocast

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def patch_norm(input: Tensor, kernel_size: tuple[int, ...], spec: ConvSpec) -> Tensor:
    """L2 norm of every patch and group.

    Args:
        input: [N, C, *spatial].
        kernel_size: spatial extents of the kernel.
        spec: stride, padding, dilation and groups.

    Returns:
        [N, groups, *out], at least fp32. Its gradient is 0 where the patch is all zeros.
    """
    input, spec = seen_pixels(input, kernel_size, spec)
    batch, channels = input.shape[:2]
    wide = input.to(norm_dtype(input.dtype))
    squares = wide.reshape(batch, spec.groups, channels // spec.groups, *input.shape[2:]).square().sum(2)
    if spec.rank:
        ones = squares.new_ones(spec.groups, 1, *kernel_size)
        squares = _CONV[spec.rank](squares, ones, None, spec.stride, spec.padding, spec.dilation, spec.groups)
    # The square root of 0 has no gradient: take it of 1 instead and throw the result away.
    empty = squares == 0
    return torch.where(empty, 0.0, torch.where(empty, 1.0, squares).sqrt())


def _widened(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast in the format that ATen sees in its strides: a plain cast of an expanded tensor may be channels_last."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype, memory_format=memory_format(tensor, tensor))


def _product_dtype(input: Tensor) -> torch.dtype:
    """fp16 products overflow where the quotient would not, and on CPUs that multiply bf16, ATen's go wrong.

    With channels innermost, oneDNN (of PyTorch 2.13) gives wrong gradients of the weight, and overruns its memory.
    """
    narrow = input.dtype == torch.float16 or (input.dtype == torch.bfloat16 and input.device.type == "cpu")
    return torch.float32 if narrow else input.dtype


def compact_conv(input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor | float, spec: ConvSpec) -> Tensor:
    """Equation 4 of the paper for one ``ConvSpec``: input [N, C, *spatial] to output [N, O, *out]."""
    return branches(input, weight, bias, alpha, spec)[0]


def branches(
    input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor | float, spec: ConvSpec
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [N, O, *out], quotient u / d (the same shape, as wide as the products) and norm [N, groups, *out]."""
    input, spec = seen_pixels(input, tuple(weight.shape[2:]), spec)
    input = settled(input)
    norm = patch_norm(input, tuple(weight.shape[2:]), spec)
    compute = _product_dtype(input)
    x, w = _widened(input, compute), _widened(weight, compute)
    if spec.rank:
        product = _CONV[spec.rank](x, w, None, spec.stride, spec.padding, spec.dilation, spec.groups)
    else:
        product = F.linear(x, w)
    divisor = norm + spec.delta
    if spec.delta == 0:  # 0 / 0 counts as 0
        divisor = torch.where(norm == 0, torch.inf, divisor)
    if spec.groups == 1:
        quotient = product / divisor
    else:
        by_group = product.unflatten(1, (spec.groups, -1))  # [N, groups, O / groups, *out]
        quotient = (by_group / divisor.unsqueeze(2)).flatten(1, 2)
    output = alpha * quotient
    if bias is not None:
        output = output + bias.reshape(-1, *[1] * spec.rank)
    return (output.relu() if spec.relu else output).to(input.dtype), quotient, norm


def _convolution(rank: int) -> Callable[..., Tensor]:
    def compact_convnd(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        alpha: Tensor | float = 1.0,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        *,
        delta: float = 0.01,
        activation: str | None = None,
    ) -> Tensor:
        args = (stride, padding, dilation, groups, delta, activation)
        return run(resolve(rank, input, weight, bias, alpha, *args))

    compact_convnd.__name__ = compact_convnd.__qualname__ = f"compact_conv{rank}d"
    compact_convnd.__doc__ = (
        f"The two-branch module (figure 4 of the paper) over {rank} spatial axes: input [N, C, *spatial], weight "
        f"[O, C / groups, *kernel], output [N, O, *out]; arguments and errors of functional.compact_conv{rank}d."
    )
    return compact_convnd


compact_conv1d = _convolution(1)
compact_conv2d = _convolution(2)
compact_conv3d = _convolution(3)


def compact_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    alpha: Tensor | float = 1.0,
    *,
    delta: float = 0.01,
    activation: str | None = None,
) -> Tensor:
    """The fully connected layer: input [..., in_features], weight [out_features, in_features]."""
    return run(resolve(0, input, weight, bias, alpha, (), (), (), 1, delta, activation))


def run(call: Call) -> Tensor:
    """A checked call, by the reference."""
    with without_autocast(call.input.device.type):
        return call.restore(compact_conv(call.input, call.weight, call.bias, call.alpha, call.spec))
