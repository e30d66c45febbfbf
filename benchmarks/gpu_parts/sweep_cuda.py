"""Calls that take the CUDA C++ backend through each of its kernels, in every type."""

from __future__ import annotations

import torch
from torch import Tensor

from ccn_kernels.backends import cuda as backend
from ccn_kernels.bench.case import Named

from .sweep import GRADIENTS, Call

TYPES = ((torch.float16, False), (torch.bfloat16, False), (torch.float32, False), (torch.float32, True),
         (torch.float64, False))  # fmt: skip
# What decides is told in csrc/cuda/call.cuh; the places are enough for two shares of them in any type.
WAYS = (
    Call("chunks", (16, 24)),
    Call("gathered", (3, 20), relu=True),
    Call("packed", (24, 40), channels_last=False),
    Call("packed, odd", (21, 35), relu=True),
    Call("wide", (16, 150), (4, 5)),
    Call("split K", (128, 72), (4, 4)),
    Call("split K, contiguous", (128, 72), (4, 4), relu=True, channels_last=False),
    Call("split places", (16, 16), (13, 14)),
    Call("phases of a stride", (16, 24), (9, 8), stride=2, dilation=3),
    Call("groups of tiles", (48, 80), groups=2),
    Call("depthwise", (6, 12), (13, 14), groups=6),
    Call("depthwise, contiguous", (6, 6), stride=2, groups=6, relu=True, channels_last=False),
    Call("1x1", (16, 24), kernel=1),
    Call("linear", (200, 130), (), 7, 1),
    Call("linear, shares of channels", (40, 700), (), 3, 1),
    Call("alpha alone", (16, 24), wanted=("alpha",)),
    Call("alpha alone, depthwise", (6, 6), groups=6, wanted=("alpha",)),
    Call("bias and weight", (16, 24), wanted=("weight", "bias"), relu=True),
)
CALLS = tuple(way._replace(dtype=dtype, tf32=tf32) for way in WAYS for dtype, tf32 in TYPES)


def compute(call: Call, operands: Named, grad: Tensor) -> Named:
    output, quotient, norm = backend.forward(*operands.values(), call.spec, not call.relu)
    saved = (output, None) if call.relu else (None, quotient)
    mask = [name in call.wanted for name in GRADIENTS]
    gradients = backend.backward(grad, *operands.values(), *saved, norm, call.spec, mask)
    return {"output": output, **dict(zip(GRADIENTS, gradients, strict=True))}
