"""CompactConvFunction: what the forward saves, what the backward returns (equations 4 to 6 of the paper)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function

from . import ops, reference
from .known import KnownSpec
from .spec import ConvSpec, seen_pixels, settled, without_autocast


def seen_by(backend: str, input: Tensor, weight: Tensor, spec: ConvSpec) -> tuple[Tensor, ConvSpec]:
    """The input as a backend with kernels reads it, and the spec of that."""
    if backend == "cpu":  # which skips pixels itself, and has ATen's convolution
        return settled(input), spec
    return seen_pixels(input, tuple(weight.shape[2:]), spec)


def compact_conv(
    input: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, spec: ConvSpec, backend: str
) -> Tensor:
    """A compact convolution by a backend with kernels; arguments are checked already."""
    if isinstance(spec, KnownSpec) and not torch.is_grad_enabled():  # in eager code, outside autocast
        return ops.compact_conv(input, weight, bias, alpha, spec, False, backend)[0]
    with without_autocast(input.device.type):
        if not _differentiates():
            return ops.compact_conv(input, weight, bias, alpha, spec, False, backend)[0]
        save_quotient = torch.is_grad_enabled() and _needs_quotient(
            input.requires_grad, weight.requires_grad, alpha.requires_grad, spec
        )
        return _apply(CompactConvFunction, input, weight, bias, alpha, spec, save_quotient, backend)[0]


def _apply(function: type[Function], *args: Any) -> Any:
    """``function.apply``, which binds its arguments to a signature first: as long as a small layer takes."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    return super(Function, function).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]


def _differentiates() -> bool:
    """Whether anything may want a derivative, in whatever mode; a Function costs several times the operator's call."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return True
    return torch._C._are_functorch_transforms_active()


def _needs_quotient(input: bool, weight: bool, alpha: bool, spec: ConvSpec) -> bool:
    """Whether these gradients need u / d. The input's can take it from a fused ReLU's output, alpha's from W's."""
    return (input and not spec.relu) or (alpha and not weight)


class CompactConvFunction(Function):
    """(input, weight, bias, alpha, spec, save_quotient, backend) -> (output, quotient, norm).

    The output itself is saved only under the fused ReLU; otherwise an in-place activation after the layer would
    destroy it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(input, weight, bias, alpha, spec, save_quotient, backend):
        return ops.compact_conv(input, weight, bias, alpha, spec, save_quotient, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, weight, bias, alpha, ctx.spec, ctx.save_quotient, ctx.backend = inputs
        out, quotient, norm = output
        ctx.mark_non_differentiable(quotient, norm)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, weight, bias, alpha, out if ctx.spec.relu else None, quotient, norm)

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return (None,) * 7
        input, weight, bias, alpha, out, quotient, norm = ctx.saved_tensors
        needs_input, needs_weight, needs_bias, needs_alpha = ctx.needs_input_grad[:4]
        mask = [needs_input, needs_weight, needs_alpha, needs_bias]
        with without_autocast(input.device.type):
            if not ctx.save_quotient:
                quotient = None
                if _needs_quotient(needs_input, needs_weight, needs_alpha, ctx.spec):
                    quotient = ops.compact_conv(
                        input.detach(), weight.detach(), None, alpha.detach(), ConvSpec(*ctx.spec), True, ctx.backend
                    )[1]
            args = (grad, input, weight, bias, alpha, out, quotient, norm, ctx.spec, mask, ctx.backend)
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                results = CompactConvBackward.apply(*args)
            else:
                results = ops.compact_conv_backward(*args)
        d_input, d_weight, d_alpha, d_bias = (
            result if asked else None for result, asked in zip(results, mask, strict=True)
        )
        return d_input, d_weight, d_bias, d_alpha, None, None, None


class CompactConvBackward(Function):
    """The backward pass as a function of its own, differentiated through the two-branch module."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, input, weight, bias, alpha, out, quotient, norm, spec, mask, backend):
        return ops.compact_conv_backward(grad, input, weight, bias, alpha, out, quotient, norm, spec, mask, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, input, weight, bias, alpha, _, _, _, ctx.spec, ctx.mask, _ = inputs
        ctx.mark_non_differentiable(*(part for part, asked in zip(output, ctx.mask, strict=True) if not asked))
        ctx.save_for_backward(grad, input, weight, bias, alpha)

    @staticmethod
    def backward(ctx, *cotangents):
        grad, input, weight, bias, alpha = ctx.saved_tensors
        tensors = (grad, input, weight, alpha) + (() if bias is None else (bias,))

        def first_order(grad, *operands):
            def module(input, weight, alpha, bias=None):
                return reference.compact_conv(input, weight, bias, alpha, ctx.spec)

            gradients = torch.func.vjp(module, *operands)[1](grad)
            return tuple(part for part, asked in zip(gradients, ctx.mask, strict=False) if asked)

        asked = tuple(part for part, wanted in zip(cotangents, ctx.mask, strict=True) if wanted)
        with without_autocast(input.device.type):
            d_grad, d_input, d_weight, d_alpha, *d_bias = torch.func.vjp(first_order, *tensors)[1](asked)
        return d_grad, d_input, d_weight, d_bias[0] if d_bias else None, d_alpha, *(None,) * 6


ops.register_autograd(CompactConvFunction.setup_context, CompactConvFunction.backward)
