"""Stateless compact convolutions: checks, autocast and unbatched inputs, then the chosen backend."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from types import NoneType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.overrides import handle_torch_function, has_torch_function

from . import autograd, backends, known, reference
from .arguments import resolve
from .losses import l2_softmax_loss

NO_TORCHSCRIPT = (
    "compact convolutions do not go through torch.jit: "
    "use torch.compile, torch.export or torch.onnx.export(dynamo=True)"
)

__all__ = ["compact_conv1d", "compact_conv2d", "compact_conv3d", "compact_linear", "l2_softmax_loss"]


def _public(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As with PyTorch's own functions, a tensor subclass or a mode that has ``__torch_function__`` is asked first."""

    @functools.wraps(function)
    def call(input, weight, bias=None, alpha=1.0, *args, **kwargs):
        operands = (input, weight, bias, alpha)
        if has_torch_function(operands):
            return handle_torch_function(call, operands, *operands, *args, **kwargs)
        if torch.jit.is_tracing():
            raise RuntimeError(NO_TORCHSCRIPT)
        return function(*operands, *args, **kwargs)

    return call


@_public
def compact_conv1d(
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
    backend: str | None = None,
) -> Tensor:
    """Compact convolution over sequences; see :func:`compact_conv2d`.

    Shapes:
        input [N, C, L] or [C, L]; weight [O, C / groups, k]; bias [O]; output [N, O, L'].
    """
    args = (stride, padding, dilation, groups, delta, activation)
    return _run(1, (input, weight, bias, alpha), args, backend)


@_public
def compact_conv2d(
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
    backend: str | None = None,
) -> Tensor:
    """Compact convolution (equation 4 of Ranjan et al., 2018) over images.

    ``output = alpha * conv(input, weight) / (norm + delta) + bias``, where ``norm`` is the L2 norm of the patch that
    an output pixel sees. A patch of zeros gives exactly the bias.

    Shapes:
        input [N, C, H, W] or [C, H, W]; weight [O, C / groups, kH, kW]; bias [O]; output [N, O, H', W'].

    Args:
        alpha: scale, a number or a 0-dim tensor.
        stride, padding, dilation, groups: as in ``F.conv2d``; padding may be "same" or "valid".
        delta: added to the norm, after the root.
        activation: None or "relu", applied in the same pass.
        backend: None for the fastest that can run the call, or a name from ``ccn_kernels.available_backends()``.

    Raises:
        TypeError: an argument is of the wrong Python type.
        ValueError: delta is negative, or the activation or backend is unknown.
        RuntimeError: shapes, dtypes or devices do not fit, or the named backend cannot run the call.
    """
    args = (stride, padding, dilation, groups, delta, activation)
    return _run(2, (input, weight, bias, alpha), args, backend)


@_public
def compact_conv3d(
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
    backend: str | None = None,
) -> Tensor:
    """Compact convolution over volumes; see :func:`compact_conv2d`.

    Shapes:
        input [N, C, D, H, W] or [C, D, H, W]; weight [O, C / groups, kD, kH, kW]; bias [O]; output [N, O, D', H', W'].
    """
    args = (stride, padding, dilation, groups, delta, activation)
    return _run(3, (input, weight, bias, alpha), args, backend)


@_public
def compact_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    alpha: Tensor | float = 1.0,
    *,
    delta: float = 0.01,
    activation: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """Compact fully connected layer: the patch is the whole feature vector (section 3 of the paper).

    Shapes:
        input [..., in_features]; weight [out_features, in_features]; bias [out_features]; output [..., out_features].
    """
    return _run(0, (input, weight, bias, alpha), ((), (), (), 1, delta, activation), backend)


def _run(rank: int, operands: tuple[Any, ...], settings: tuple[Any, ...], backend: str | None) -> Tensor:
    signature = known.signature(rank, operands, settings, backend)
    found = known.find(signature)
    if found is not None:
        return autograd.compact_conv(*operands, found, found.backend)  # type: ignore[call-arg]
    call = resolve(rank, *operands, *settings)
    input, weight, bias, alpha, spec, leading = call
    wrapped = any(map(_wraps, (input, weight, bias, alpha)))
    name = backends.select(backend, input.device.type, input.dtype, spec.rank, _transformed(), wrapped)
    if name == "reference":
        return reference.run(call)
    input, spec = autograd.seen_by(name, input, weight, spec)
    keeps = signature is not None and leading is None and known.tells(settings)
    if keeps and all(map(operator.is_, (input, weight, bias, alpha), operands)):  # nothing was cast or padded
        spec = known.keep(signature, spec, name)
    return call.restore(autograd.compact_conv(input, weight, bias, alpha, spec, name))


def _transformed() -> bool:
    """Whether a tangent may be asked for, a compiler sees a transform of torch.func, or the program becomes ONNX.

    Such a compiler tells a Function that no gradient is needed of it; ONNX knows ATen's operators alone.
    """
    if forward_ad._current_level >= 0:
        return True
    if not torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or torch.onnx.is_in_onnx_export()


def _wraps(tensor: Tensor | None) -> bool:
    """What torch.utils._python_dispatch.is_traceable_wrapper_subclass asks, as a compiler can follow it."""
    return type(tensor) not in (Tensor, Parameter, NoneType) and hasattr(type(tensor), "__tensor_flatten__")
