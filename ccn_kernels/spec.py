"""What one call computes: its parameters, its shapes, and the memory format of its output.

Imports nothing but torch, so that every backend and the operators' fakes can share it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

MAX_RANK = 3
ENVIRONMENT = "CCN_BACKEND"  # its word on which backend runs calls that name none


class ConvSpec(NamedTuple):
    """Everything about a compact convolution that is not a tensor. Rank 0 (empty tuples) is a linear layer."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    delta: float
    relu: bool

    @property
    def rank(self) -> int:
        return len(self.stride)


def autocasts(device: str) -> bool:
    """Whether autocast is on for a device type; the meta device knows none."""
    return device != "meta" and torch.is_autocast_enabled(device)


def without_autocast(device: str) -> AbstractContextManager:
    """For operands that are in their final dtype: the convolutions inside must not be cast again."""
    return torch.autocast(device, enabled=False) if autocasts(device) else nullcontext()


def output_size(spec: ConvSpec, input: Tensor, weight: Tensor) -> list[int]:
    """Spatial extents of the output, as the convolution arithmetic of ``F.conv2d`` gives them."""
    sizes = []
    for axis in range(spec.rank):
        span = spec.dilation[axis] * (weight.shape[2 + axis] - 1) + 1
        sizes.append((input.shape[2 + axis] + 2 * spec.padding[axis] - span) // spec.stride[axis] + 1)
    return sizes


def seen_pixels(input: Tensor, kernel_size: tuple[int, ...], spec: ConvSpec) -> tuple[Tensor, ConvSpec]:
    """A strided kernel of one tap reads every stride-th pixel alone: it gets those, and stride 1.

    That is less work, and oneDNN (in PyTorch 2.13) overruns its memory on such kernels over few channels_last channels.
    """
    ones = (1,) * spec.rank
    if spec.stride == ones or any(spec.padding) or any(tap != 1 for tap in kernel_size):
        return input, spec
    seen = input[(slice(None), slice(None), *(slice(None, None, step) for step in spec.stride))]
    if is_channels_last(input) and not is_channels_last(seen):  # of an odd height: images overlap, as ATen sees it
        seen = seen.contiguous(memory_format=memory_format(input, input))
    return seen, ConvSpec(*spec)._replace(stride=ones)  # which stands for no known call


def settled(input: Tensor) -> Tensor:
    """One image that is a permuted view is copied, before ATen convolves it on a CPU.

    Of such an image, in fp64 and under groups, PyTorch 2.13's gradient of the weight is wrong.
    """
    ambiguous = input.dim() > 2 and input.shape[0] == 1 and not (input.is_contiguous() or is_channels_last(input))
    return input.contiguous() if ambiguous else input


def fp32_precision(spec: ConvSpec) -> str:
    """How a GPU multiplies fp32, "tf32" or "ieee": as set for convolutions, for a linear layer as for products."""
    settings = torch.backends.cuda.matmul if spec.rank == 0 else torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return "tf32" if settings.fp32_precision == "tf32" else "ieee"


def norm_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which patch norms are accumulated and kept."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_channels_last(tensor: Tensor) -> bool:
    """Whether ATen reads these strides as channels_last (or channels_last_3d); ambiguous ones are not."""
    if tensor.dim() not in (4, 5):
        return False
    size, stride = tensor.shape, tensor.stride()
    if stride[1] == 0:
        return False
    least = 0
    for axis in (1, *range(tensor.dim() - 1, 1, -1), 0):
        if size[axis] == 0 or stride[axis] < least:
            return False
        if axis == 0 and least == stride[1]:  # [N, 1, 1, 1], or a slice of a contiguous tensor
            return False
        least = stride[axis]
        if size[axis] > 1:
            least *= size[axis]
    return True


def memory_format(input: Tensor, weight: Tensor) -> torch.memory_format:
    """The format of the output (and of the input's gradient): channels_last where either operand is."""
    if is_channels_last(input) or is_channels_last(weight):
        return torch.channels_last if input.dim() == 4 else torch.channels_last_3d
    return torch.contiguous_format
