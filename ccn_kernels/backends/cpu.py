"""The C++ CPU backend: thin calls into the compiled library's ``ccn_native`` operators."""

from __future__ import annotations

import torch
from torch import Tensor

from ..spec import ConvSpec
from . import extension

NAME = "cpu"


def unavailable() -> str | None:
    return extension.missing("cpu")


def unsupported(request) -> str | None:
    return None if request.device == "cpu" else f"it runs on CPU tensors, and input is on {request.device}"


def forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, spec: ConvSpec, save_quotient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.ccn_native.compact_conv(input, weight, bias, alpha, *spec, save_quotient)


def backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    output: Tensor | None,
    quotient: Tensor | None,
    norm: Tensor,
    spec: ConvSpec,
    mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.ops.ccn_native.compact_conv_backward(
        grad, input, weight, bias, alpha, output, quotient, norm, *spec[:-1], mask
    )
