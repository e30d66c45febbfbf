"""Checks of a public call's arguments, and their normal form.

Errors are of the class that ``F.conv2d`` raises for the same mistake, and name the argument.
"""

from __future__ import annotations

import math
import operator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .spec import MAX_RANK, ConvSpec, autocasts, norm_dtype

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
ACTIVATIONS = (None, "relu")


class Call(NamedTuple):
    """A checked call. ``input`` is [N, C, *spatial]; ``restore`` gives the output the shape the caller expects."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    alpha: Tensor
    spec: ConvSpec
    leading: tuple[int, ...] | None  # None: batched already; (): an unbatched image; else a linear layer's axes

    def restore(self, output: Tensor) -> Tensor:
        if self.leading is None:
            return output
        return output.reshape(*self.leading, *output.shape[1:])


def resolve(
    rank: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor | float,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    delta: float,
    activation: str | None,
) -> Call:
    """Checks the arguments of a compact convolution of ``rank`` spatial axes (0: linear) and normalises them.

    Types first, whatever else is wrong, as PyTorch's parser of arguments does.
    """
    for name, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if not (isinstance(tensor, Tensor) or (tensor is None and name == "bias")):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
    strides, dilations, groups = _ints("stride", stride), _ints("dilation", dilation), _integer("groups", groups)
    paddings = () if isinstance(padding, str) else _ints("padding", padding)
    if any(isinstance(n, int) and n.bit_length() > 63 for n in (*strides, *paddings, *dilations, groups)):
        _refuse_wide(stride=stride, padding=padding, dilation=dilation, groups=groups)
    check_delta(delta)
    check_activation(activation)
    _check_tensors(rank, input, weight, bias)
    input, weight, bias = _autocast(input, weight, bias)
    _check_types(input, weight, bias)
    alpha = _alpha(alpha, input)
    input, leading = _batched(rank, input)
    _check_channels(input, weight, bias, groups)
    if rank:
        stride = _axes("stride", strides, rank, least=1)
        dilation = _axes("dilation", dilations, rank, least=1)
        if isinstance(padding, str):
            input, padding = _named_padding(padding, input, weight, stride, dilation)
        else:
            padding = _axes("padding", paddings, rank, least=0)
        _check_not_empty(input, weight)
    spec = ConvSpec(stride, padding, dilation, groups, float(delta), activation == "relu")
    _check_extents(input, weight, spec)
    return Call(input, weight, bias, alpha, spec, leading)


def check_delta(delta: float) -> None:
    if not isinstance(delta, (int, float)):
        raise TypeError(f"delta must be a number, got {type(delta).__name__}")
    if not 0 <= delta < math.inf:  # NaN fails too
        raise ValueError(f"delta must be a finite number >= 0, got {delta}")


def check_activation(activation: str | None) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")


def _check_tensors(rank: int, input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    tensors = [("input", input), ("weight", weight)] + ([] if bias is None else [("bias", bias)])
    for name, tensor in tensors:
        if tensor.device != input.device:
            raise RuntimeError(
                f"input, weight, bias and alpha must be on one device: input is on {input.device}, {name} on "
                f"{tensor.device}"
            )
        if tensor.layout != torch.strided or tensor.is_nested:
            layout = "nested" if tensor.is_nested else f"layout {tensor.layout}"
            raise RuntimeError(f"{name} must be a dense (strided) tensor, got {layout}")
    if weight.dim() != rank + 2:
        raise RuntimeError(f"weight must have {rank + 2} dimensions, got shape {list(weight.shape)}")
    if rank == 0 and input.dim() < 1:
        raise RuntimeError("input must have at least 1 dimension, got a scalar")
    if rank and input.dim() not in (rank + 1, rank + 2):
        raise RuntimeError(
            f"input must have {rank + 1} (unbatched) or {rank + 2} dimensions for a {rank}-D compact convolution, "
            f"got shape {list(input.shape)}"
        )
    assert rank <= MAX_RANK


def _check_types(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if input.dtype not in DTYPES:
        raise RuntimeError(f"input must be float32, float64, float16 or bfloat16, got {input.dtype}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != input.dtype:
            raise RuntimeError(f"{name} must have the input's dtype {input.dtype}, got {tensor.dtype}")


def _alpha(alpha: Tensor | float, input: Tensor) -> Tensor:
    if not isinstance(alpha, Tensor):
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
            raise TypeError(f"alpha must be a float or a 0-dim Tensor, got {type(alpha).__name__}")
        return torch.full((), float(alpha), dtype=norm_dtype(input.dtype), device=input.device)
    if alpha.dim() != 0:
        raise RuntimeError(f"alpha must be a 0-dim Tensor, got shape {list(alpha.shape)}")
    if not alpha.dtype.is_floating_point:
        raise RuntimeError(f"alpha must be of a floating-point dtype, got {alpha.dtype}")
    if alpha.device != input.device:
        raise RuntimeError(
            f"input, weight, bias and alpha must be on one device: input is on {input.device}, alpha on {alpha.device}"
        )
    return alpha


def _autocast(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Casts as autocast casts the operands of ``nn.Conv2d``: all floating-point ones but fp64."""
    device = input.device.type
    if not autocasts(device):
        return input, weight, bias
    dtype = torch.get_autocast_dtype(device)

    def cast(tensor: Tensor) -> Tensor:
        eligible = tensor.dtype.is_floating_point and tensor.dtype != torch.float64
        return tensor.to(dtype) if eligible else tensor

    return cast(input), cast(weight), None if bias is None else cast(bias)


def _batched(rank: int, input: Tensor) -> tuple[Tensor, tuple[int, ...] | None]:
    if rank == 0:
        if input.dim() == 2:
            return input, None
        return input.reshape(math.prod(input.shape[:-1]), input.shape[-1]), tuple(input.shape[:-1])
    if input.dim() == rank + 1:
        return input.unsqueeze(0), ()
    return input, None


def _check_channels(input: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> None:
    if groups <= 0:
        raise RuntimeError(f"groups must be positive, got {groups}")
    if weight.shape[0] % groups:
        raise RuntimeError(f"groups must divide weight's {weight.shape[0]} output channels, got groups={groups}")
    if input.shape[1] != weight.shape[1] * groups:
        raise RuntimeError(
            f"input must have weight.shape[1] * groups = {weight.shape[1] * groups} channels, got {input.shape[1]} "
            f"(weight is {list(weight.shape)}, groups {groups})"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise RuntimeError(f"bias must have shape [{weight.shape[0]}], got {list(bias.shape)}")


def _check_not_empty(input: Tensor, weight: Tensor) -> None:
    """What ``F.conv2d`` refuses, and no input channels, of which it makes no output channels."""
    if 0 in weight.shape:
        raise RuntimeError(f"weight must have no axis of extent 0, got shape {list(weight.shape)}")
    if 0 in input.shape[2:] and input.shape[0] != 0:
        raise RuntimeError(f"input must have a pixel on every spatial axis, got shape {list(input.shape)}")


def _integer(name: str, value: Any) -> int:
    if isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    try:
        if not isinstance(value, bool):  # which Python takes for a number, and F.conv2d does not
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{name} must be an int or a tuple of ints, got {value!r}")


def _ints(name: str, value: Any) -> tuple[int, ...]:
    return tuple([_integer(name, v) for v in (value if isinstance(value, (tuple, list)) else (value,))])


def _refuse_wide(**given: Any) -> None:
    """The first that has a number of more than 64 bits, by the two classes of error that ``F.conv2d`` has for it."""
    for name, value in given.items():
        several = isinstance(value, (tuple, list))
        if any(isinstance(n, int) and n.bit_length() > 63 for n in (value if several else (value,))):
            raise (TypeError if several else ValueError)(f"{name} must fit 64 bits, got {value}")


def _axes(name: str, axes: tuple[int, ...], rank: int, least: int) -> tuple[int, ...]:
    if len(axes) == 1:
        axes *= rank
    if len(axes) != rank:
        raise RuntimeError(f"{name} must be one int or {rank} ints, got {axes}")
    for axis in axes:
        if axis < least:
            raise RuntimeError(f"{name} must be at least {least}, got {axes}")
    return axes


def _named_padding(
    padding: str, input: Tensor, weight: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[Tensor, tuple[int, ...]]:
    """Padding for "valid" and "same"; an odd total is padded at the far end, as ``F.conv2d`` does."""
    if padding == "valid":
        return input, (0,) * len(stride)
    if padding != "same":
        raise RuntimeError(f"padding must be ints, 'valid' or 'same', got {padding!r}")
    if any(s != 1 for s in stride):
        raise RuntimeError(f"padding='same' needs stride 1, got stride {stride}")
    totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if any(total % 2 for total in totals):
        far = [amount for total in reversed(totals) for amount in (0, total % 2)]
        input = F.pad(input, far)
    return input, tuple(total // 2 for total in totals)


def _check_extents(input: Tensor, weight: Tensor, spec: ConvSpec) -> None:
    for axis in range(spec.rank):
        room = input.shape[2 + axis] + 2 * spec.padding[axis]
        span = spec.dilation[axis] * (weight.shape[2 + axis] - 1) + 1
        if span > room:
            raise RuntimeError(
                f"weight's kernel spans {span} along spatial axis {axis}, more than the padded input's {room} "
                f"(input {list(input.shape)}, padding {spec.padding}, dilation {spec.dilation})"
            )
