"""The linear part of a layer, as its bounds need it: rows of weights that are multiplied with patches.

A linear layer has one patch, all its features. Shapes: x [N, C, *in], products [N, O, *out], what is said of a patch
and group [N, G, *out].
"""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROUNDED = 1 + 1e-9  # LAPACK's singular values are off by a small multiple of 2**-53


def spectral(matrices: Tensor) -> float:
    """An upper bound of the largest singular value of any of the matrices [..., O, K]."""
    return ROUNDED * torch.linalg.matrix_norm(matrices, 2).max().item()


class Dense:
    """Rows [K, F] of a linear layer; [N, K, F] if every image has its own."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.terms = weight, weight.shape[-1]
        self.norms = weight.norm(dim=-1)  # [K] or [N, K]

    @cached_property
    def patchwise(self) -> float:
        """||y|| <= this * ||all patches||."""
        return spectral(self.weight)

    @property
    def overall(self) -> float:
        """||y|| <= this * ||x||."""
        return self.patchwise

    def product(self, x: Tensor) -> Tensor:
        """W p, in the dtype of x."""
        return self._times(self.weight.to(x.dtype), x)

    def magnitude(self, x: Tensor) -> Tensor:
        """The product with the weights' magnitudes."""
        return self._times(self.weight.abs(), x)

    @staticmethod
    def _times(weight: Tensor, x: Tensor) -> Tensor:
        return x @ weight.T if weight.dim() == 2 else (weight @ x.unsqueeze(-1)).squeeze(-1)

    def squares(self, x: Tensor) -> Tensor:
        """Sums of squares over patches. [N, 1]"""
        return self.total(x.square())

    def total(self, x: Tensor) -> Tensor:
        """Sums over patches. [N, 1]"""
        return x.sum(1, keepdim=True)

    def most_seen(self, values: Tensor) -> Tensor:
        """For values of patches [N, 1], the largest sum over the patches that see one pixel. [N]"""
        return values.squeeze(1)

    def each(self, values: Tensor) -> Tensor:
        """Values of patches, for every row. [N, 1]"""
        return values

    def grouped(self, y: Tensor) -> Tensor:
        """Sums of squares over the rows that share a patch. [N, 1]"""
        return y.square().sum(1, keepdim=True)


class Convolution:
    """Rows [O, C / groups, kh, kw] of a convolution with zero padding, over images of one size."""

    def __init__(self, conv: nn.Conv2d, size: tuple[int, int]) -> None:
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(f"bounds are proved for convolutions with zeros in integer padding, got {conv}")
        self.weight, self.groups, self.size = conv.weight.detach(), conv.groups, size
        self.settings = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
        self.norms = self.weight.flatten(1).norm(dim=1).view(-1, 1, 1)  # [O, 1, 1]
        self.terms = self.weight[0].numel()
        self.ones = self.weight.new_ones(self.groups, 1, *self.weight.shape[2:])

    @cached_property
    def patchwise(self) -> float:
        """||y|| <= this * ||all patches||: the groups' kernels are the blocks of one matrix."""
        return spectral(self.weight.unflatten(0, (self.groups, -1)).flatten(2))

    @cached_property
    def overall(self) -> float:
        """||y|| <= this * ||x||.

        Zero padding, stride and borders only leave out parts of a circular convolution over a torus as large as the
        padded image; that one is block-diagonal in frequency (Sedghi, Gupta and Long, 2019).
        """
        (padding, dilation), kernel = (self.settings[name] for name in ("padding", "dilation")), self.weight.shape[2:]
        torus = [n + 2 * p for n, p in zip(self.size, padding, strict=True)]
        spaced = self.weight.new_zeros(*self.weight.shape[:2], *torus)
        taps = [torch.arange(k) * d for k, d in zip(kernel, dilation, strict=True)]
        spaced[:, :, taps[0][:, None], taps[1]] = self.weight
        frequencies = torch.fft.rfft2(spaced).permute(2, 3, 0, 1)  # [f, f', O, C / groups]
        return spectral(frequencies.unflatten(2, (self.groups, -1)))

    def product(self, x: Tensor) -> Tensor:
        """W p, in the dtype of x."""
        return F.conv2d(x, self.weight.to(x.dtype), None, groups=self.groups, **self.settings)

    def magnitude(self, x: Tensor) -> Tensor:
        """The product with the weights' magnitudes."""
        return F.conv2d(x, self.weight.abs(), None, groups=self.groups, **self.settings)

    def squares(self, x: Tensor) -> Tensor:
        """Sums of squares over patches. [N, G, *out]"""
        return self.total(x.square())

    def total(self, x: Tensor) -> Tensor:
        """Sums over patches. [N, G, *out]"""
        grouped = x.unflatten(1, (self.groups, -1)).sum(2)
        return F.conv2d(grouped, self.ones.to(x.dtype), None, groups=self.groups, **self.settings)

    def most_seen(self, values: Tensor) -> Tensor:
        """For values of patches [N, G, *out], the largest sum over the patches that see one pixel. [N]"""
        seen = F.conv_transpose2d(values, self.ones, None, groups=self.groups, **self.settings)
        return seen.flatten(1).amax(1)

    def each(self, values: Tensor) -> Tensor:
        """Values of patches, for every row. [N, O, *out]"""
        return values.repeat_interleave(len(self.weight) // self.groups, 1)

    def grouped(self, y: Tensor) -> Tensor:
        """Sums of squares over the rows that share a patch. [N, G, *out]"""
        return y.square().unflatten(1, (self.groups, -1)).sum(2)


Rows = Dense | Convolution
