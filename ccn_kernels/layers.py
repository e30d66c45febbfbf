"""Drop-in layers: ``nn.Conv1d/2d/3d`` and ``nn.Linear`` with patch normalisation and a learnable scale."""

from __future__ import annotations

import logging
import math
import numbers
from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import backends, functional, reference
from .arguments import check_activation, check_delta, resolve
from .plain import PLAIN, why_not
from .spec import norm_dtype

logger = logging.getLogger("ccn_kernels")
_warned_about_alpha = False


class _Compact(nn.Module):
    """What all compact layers have besides their plain layer's parameters."""

    weight: Tensor
    alpha: Tensor
    alpha_shape: tuple[int, ...] = ()  # (1,) after convert.shardable: of a Parameter with one axis
    initial_alpha: float
    delta: float
    activation: str | None
    backend: str | None

    def _add_scale(
        self, alpha: float, learn_alpha: bool, delta: float, activation: str | None, backend: str | None
    ) -> None:
        if isinstance(alpha, bool) or not isinstance(alpha, (numbers.Real, Tensor)):  # float() would read a string
            raise TypeError(f"alpha must be a number, got {alpha!r}")
        if not math.isfinite(alpha):
            raise ValueError(f"alpha must be finite, got {alpha}")
        check_delta(delta)
        check_activation(activation)
        if backend is not None:
            backends.get(backend)
        self.initial_alpha = float(alpha)
        self.delta, self.activation, self.backend = delta, activation, backend
        scale = torch.full((), self.initial_alpha, device=self.weight.device, dtype=self.weight.dtype)
        self._set_alpha(nn.Parameter(scale) if learn_alpha else scale)

    def _set_alpha(self, alpha: Tensor) -> None:
        if isinstance(alpha, nn.Parameter):
            self.alpha = alpha
        else:
            self.register_buffer("alpha", alpha)

    @torch.no_grad()
    def reset_alpha(self) -> None:
        """Gives alpha the value that it was made with, on the weight's device if it is on the meta device still."""
        if self.alpha.is_meta and not self.weight.is_meta:
            alpha = torch.empty_like(self.alpha, device=self.weight.device)
            learn, thawed = isinstance(self.alpha, nn.Parameter), self.alpha.requires_grad
            self._set_alpha(nn.Parameter(alpha, thawed) if learn else alpha)
        self.alpha.fill_(self.initial_alpha)

    def reset_parameters(self) -> None:
        super().reset_parameters()  # type: ignore[misc]
        if hasattr(self, "alpha"):  # the plain layer's constructor comes here before it is made
            self.reset_alpha()

    def _apply(self, fn, recurse=True):
        """After ``to_empty`` from the meta device, a plain layer's state fills in all but alpha: that is set here."""
        was_meta = self.alpha.is_meta
        super()._apply(fn, recurse)
        if was_meta and not self.alpha.is_meta:
            self.reset_alpha()
        return self

    def __prepare_scriptable__(self):
        raise RuntimeError(functional.NO_TORCHSCRIPT)

    @property
    def _scale(self) -> Tensor:
        """Alpha as the functions take it. Torch.fx could not follow a question to alpha itself."""
        return self.alpha.reshape(()) if self.alpha_shape else self.alpha

    @property
    def _settings(self) -> dict[str, Any]:
        return {"delta": self.delta, "activation": self.activation, "backend": self.backend}

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, delta={self.delta}"
        if self.activation:
            text += f", activation={self.activation!r}"
        if self.backend:
            text += f", backend={self.backend!r}"
        return text if isinstance(self.alpha, nn.Parameter) else f"{text}, learn_alpha=False"

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        """A plain layer's state has no alpha: ours keeps its own, and says so once."""
        key = prefix + "alpha"
        state_dict = self._with_our_axis(state_dict, key)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        if key in missing and any(name.startswith(prefix) for name in state_dict):
            missing.remove(key)
            _warn_about_alpha(key)
        if self.alpha.is_meta and not self.weight.is_meta:  # load_state_dict(assign=True)
            self.reset_alpha()

    def _with_our_axis(self, state_dict, key):
        """A 0-dim alpha for one that ``convert.shardable`` gave an axis; PyTorch does the contrary by itself."""
        if not self.alpha_shape or key not in state_dict or state_dict[key].dim():
            return state_dict
        value = state_dict[key].reshape(self.alpha_shape)
        if hasattr(self.alpha, "placements"):  # sharded, by a library that not every PyTorch has
            from torch.distributed.tensor import distribute_tensor

            value = distribute_tensor(value, self.alpha.device_mesh, self.alpha.placements, src_data_rank=None)
        return {**state_dict, key: value}


def _warn_about_alpha(key: str) -> None:
    global _warned_about_alpha
    if not _warned_about_alpha:
        logger.warning("the state has no %s (it is a plain layer's): compact layers keep the alpha they have", key)
        _warned_about_alpha = True


class _CompactConv(_Compact):
    _call: Callable[..., Tensor]

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: Any
    _reversed_padding_repeated_twice: list[int]

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True,
        padding_mode="zeros", device=None, dtype=None, *, alpha=1.0, learn_alpha=True, delta=0.01, activation=None,
        backend=None,
    ) -> None:  # fmt: skip
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self._add_scale(alpha, learn_alpha, delta, activation, backend)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = self._padded(input)
        return type(self)._call(
            input, weight, bias, self._scale, self.stride, padding, self.dilation, self.groups, **self._settings
        )

    def input_norm(self, input: Tensor) -> Tensor:
        """L2 norms [N, groups, *out] of the patches that this layer sees in ``input``."""
        input, padding = self._padded(input)
        call = resolve(
            len(self.kernel_size), input, self.weight, None, self._scale,
            self.stride, padding, self.dilation, self.groups, self.delta, None,
        )  # fmt: skip
        return reference.patch_norm(call.input, self.kernel_size, call.spec)

    def _padded(self, input: Tensor) -> tuple[Tensor, Any]:
        """The input, and what is left to pad with zeros. Values padded by any other mode count in the norm."""
        if self.padding_mode == "zeros":
            return input, self.padding
        return F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0

    @classmethod
    def from_conv(
        cls,
        conv: nn.Module,
        *,
        alpha: float = 1.0,
        learn_alpha: bool = True,
        delta: float = 0.01,
        activation: str | None = None,
        backend: str | None = None,
    ) -> Self:
        """A compact layer that shares the plain convolution's weight and bias.

        Raises:
            TypeError: ``conv`` is no plain convolution of this rank: another layer, a subclass, or one whose weight is
                computed.
        """
        _check_plain("conv", conv, cls)
        layer = cls(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
            conv.groups, conv.bias is not None, conv.padding_mode, device="meta",
        )  # fmt: skip
        return _share(layer, conv, alpha, learn_alpha, delta, activation, backend)


def _check_plain(name: str, given: Any, cls: type[nn.Module]) -> None:
    expected = next(plain for plain in PLAIN if issubclass(cls, plain))
    if not isinstance(given, expected):
        raise TypeError(f"{name} must be an nn.{expected.__name__}, got {type(given).__name__}")
    reason = why_not(given)
    if reason is not None:
        raise TypeError(f"{name} must be a plain nn.{expected.__name__}: {reason}")


def _share(layer, plain, alpha, learn_alpha, delta, activation, backend):
    layer.weight, layer.bias = plain.weight, plain.bias
    del layer.alpha
    layer._add_scale(alpha, learn_alpha, delta, activation, backend)
    return layer.train(plain.training)


class CompactConv1d(_CompactConv, nn.Conv1d):
    """``nn.Conv1d`` whose every patch is divided by its norm; see :class:`CompactConv2d`.

    Shapes: input [N, C, L] or [C, L], output [N, O, L'].
    """

    _call = staticmethod(functional.compact_conv1d)


class CompactConv2d(_CompactConv, nn.Conv2d):
    """``nn.Conv2d`` whose every patch is divided by its L2 norm and scaled by alpha (equation 4 of the paper).

    Shapes: input [N, C, H, W] or [C, H, W], output [N, O, H', W'].

    Args:
        in_channels ... dtype: as in ``nn.Conv2d``.
        alpha: initial scale. ``.alpha`` is a 0-dim Parameter, or a buffer if ``learn_alpha`` is False.
        delta: added to the norm; must not be negative.
        activation: None or "relu", computed in the same pass.
        backend: None for the fastest, or a name from ``ccn_kernels.available_backends()``.

    ``load_state_dict`` takes a plain layer's state, strictly: alpha keeps its value and a warning says so once.
    """

    _call = staticmethod(functional.compact_conv2d)


class CompactConv3d(_CompactConv, nn.Conv3d):
    """``nn.Conv3d`` whose every patch is divided by its norm; see :class:`CompactConv2d`.

    Shapes: input [N, C, D, H, W] or [C, D, H, W], output [N, O, D', H', W'].
    """

    _call = staticmethod(functional.compact_conv3d)


class CompactLinear(_Compact, nn.Linear):
    """``nn.Linear`` whose input vectors are divided by their L2 norm and scaled by alpha.

    Shapes: input [..., in_features], output [..., out_features]. In a network's last place alone it makes the
    L2-Softmax network of the paper (equation 1).
    """

    def __init__(
        self, in_features, out_features, bias=True, device=None, dtype=None, *, alpha=1.0, learn_alpha=True,
        delta=0.01, activation=None, backend=None,
    ) -> None:  # fmt: skip
        super().__init__(in_features, out_features, bias, device, dtype)
        self._add_scale(alpha, learn_alpha, delta, activation, backend)

    def forward(self, input: Tensor) -> Tensor:
        return functional.compact_linear(input, self.weight, self.bias, self._scale, **self._settings)

    def input_norm(self, input: Tensor) -> Tensor:
        """L2 norms [..., 1] of the vectors in ``input``."""
        return torch.linalg.vector_norm(input, dim=-1, keepdim=True, dtype=norm_dtype(input.dtype))

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        alpha: float = 1.0,
        learn_alpha: bool = True,
        delta: float = 0.01,
        activation: str | None = None,
        backend: str | None = None,
    ) -> Self:
        """A compact layer that shares the plain layer's weight and bias.

        Raises:
            TypeError: ``linear`` is no plain ``nn.Linear``: another layer, a subclass, or one whose weight is computed.
        """
        _check_plain("linear", linear, cls)
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        return _share(layer, linear, alpha, learn_alpha, delta, activation, backend)
