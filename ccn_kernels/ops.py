"""The operators ``ccn::compact_conv`` and ``ccn::compact_conv_backward`` as PyTorch's compiler sees them.

The only module that knows ``torch.library``: schemas, kernels (which hand over to the backend that the call names),
fakes, vmap rules, and what they are in ATen's operators. Their autograd formula is :mod:`ccn_kernels.autograd`'s, which
needs the operators' own only where a program was exported with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from . import backends, reference
from .known import PLAIN, KnownSpec
from .spec import ConvSpec, memory_format, norm_dtype, output_size, seen_pixels, without_autocast

_SPEC = "int[]? stride, int[]? padding, int[]? dilation, int groups, float delta, bool relu"  # linear layers have none

DIRECT = ("cpu", "triton")

_library = torch.library.Library("ccn", "DEF")
_library.define(
    "compact_conv(Tensor input, Tensor weight, Tensor? bias, Tensor alpha, "
    f"{_SPEC}, bool save_quotient, str backend) -> (Tensor output, Tensor quotient, Tensor norm)"
)
_library.define(
    "compact_conv_backward(Tensor grad, Tensor input, Tensor weight, Tensor? bias, Tensor alpha, Tensor? output, "
    f"Tensor? quotient, Tensor norm, {_SPEC}, bool[] output_mask, str backend) "
    "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_alpha, Tensor grad_bias)"
)


def _directly(backend: str, *tensors: Tensor | None) -> bool:
    """Whether a backend may be called without our operator, at half the price: nothing looks at operators but ATen.

    That is so in eager code over plain tensors, by backends that are operators to ATen or read memory themselves.
    """
    if backend not in DIRECT or torch.compiler.is_compiling():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
        return False
    return all(tensor is None or (type(tensor) in PLAIN and not tensor.is_neg()) for tensor in tensors)


def compact_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    spec: ConvSpec,
    save_quotient: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [N, O, *out], quotient u / d (the same shape, or empty unless asked for), norm [N, groups, *out]."""
    if (isinstance(spec, KnownSpec) and backend in DIRECT) or _directly(backend, input, weight, bias, alpha):
        return backends.get(backend).forward(input, weight, bias, alpha, spec, save_quotient)
    return torch.ops.ccn.compact_conv(input, weight, bias, alpha, *spec, save_quotient, backend)


def compact_conv_backward(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of input, weight, alpha and bias; an empty tensor for each that ``mask`` does not ask for."""
    if _directly(backend, grad, input, weight, bias, alpha, output, quotient, norm):
        return backends.get(backend).backward(grad, input, weight, bias, alpha, output, quotient, norm, spec, mask)
    return torch.ops.ccn.compact_conv_backward(
        grad, input, weight, bias, alpha, output, quotient, norm, *spec, mask, backend
    )


def _spec(stride, padding, dilation, groups, delta, relu) -> ConvSpec:
    """AOTInductor hands over None for an empty list, which a linear layer's are."""
    return ConvSpec(tuple(stride or ()), tuple(padding or ()), tuple(dilation or ()), groups, delta, relu)


def _forward(input, weight, bias, alpha, stride, padding, dilation, groups, delta, relu, save_quotient, backend):
    spec = _spec(stride, padding, dilation, groups, delta, relu)
    with without_autocast(input.device.type):  # an exported program has this operator bare
        return backends.get(backend).forward(input, weight, bias, alpha, spec, save_quotient)


def _backward(
    grad, input, weight, bias, alpha, output, quotient, norm,
    stride, padding, dilation, groups, delta, relu, output_mask, backend,
):  # fmt: skip
    spec = _spec(stride, padding, dilation, groups, delta, relu)
    with without_autocast(input.device.type):
        return backends.get(backend).backward(
            grad, input, weight, bias, alpha, output, quotient, norm, spec, list(output_mask)
        )


def _forward_fake(input, weight, bias, alpha, stride, padding, dilation, groups, delta, relu, save_quotient, backend):
    spec = _spec(stride, padding, dilation, groups, delta, relu)
    size = output_size(spec, input, weight)
    shape = (input.shape[0], weight.shape[0], *size)
    output = input.new_empty(shape).to(memory_format=memory_format(input, weight))
    quotient = torch.empty_like(output) if save_quotient else input.new_empty(0)
    norm = input.new_empty((input.shape[0], groups, *size), dtype=norm_dtype(input.dtype))
    return output, quotient, norm


def _backward_fake(
    grad, input, weight, bias, alpha, output, quotient, norm,
    stride, padding, dilation, groups, delta, relu, output_mask, backend,
):  # fmt: skip
    def if_asked(asked: bool, make: Callable[[], Tensor]) -> Tensor:
        return make() if asked else input.new_empty(0)

    format = memory_format(input, weight)
    return (
        if_asked(output_mask[0], lambda: input.new_empty(input.shape).to(memory_format=format)),
        if_asked(output_mask[1], lambda: torch.empty_like(weight)),
        if_asked(output_mask[2], lambda: alpha.new_empty(())),
        if_asked(output_mask[3], lambda: input.new_empty(weight.shape[0])),
    )


def _loop(op: Callable) -> Callable:
    """A vmap rule that runs the operator once a sample."""

    def rule(info, in_dims, *args):
        def of_sample(index):  # in_dims has a list of None for an argument that is a list of ints
            def select(arg, dim):  # of no samples, a sum is one of zeros
                return arg.select(dim, index) if info.batch_size else arg.sum(dim)

            pairs = zip(args, in_dims, strict=True)
            return [select(arg, dim) if isinstance(dim, int) else arg for arg, dim in pairs]

        results = [op(*of_sample(index)) for index in range(max(1, info.batch_size))]
        outputs = tuple(torch.stack(parts)[: info.batch_size] for parts in zip(*results, strict=True))
        return outputs, (0,) * len(outputs)

    return rule


for _name, _kernel, _fake in (
    ("compact_conv", _forward, _forward_fake),
    ("compact_conv_backward", _backward, _backward_fake),
):
    _library.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ccn::{_name}", _fake, lib=_library)
    torch.library.register_vmap(f"ccn::{_name}", _loop(getattr(torch.ops.ccn, _name)), lib=_library)


def register_autograd(setup_context: Callable, backward: Callable) -> None:
    """The formula of ``compact_conv``: that of a Function which takes the spec as one argument."""

    def setup(ctx, inputs, output):
        operands, spec, rest = inputs[:4], inputs[4:-2], inputs[-2:]
        setup_context(ctx, (*operands, _spec(*spec), *rest), output)

    def gradients(ctx, *grads):
        return (*backward(ctx, *grads)[:4], *(None,) * 8)

    torch.library.register_autograd("ccn::compact_conv", gradients, setup_context=setup, lib=_library)


def _decomposed(input, weight, bias, alpha, stride, padding, dilation, groups, delta, relu, save_quotient, backend):
    seen, spec = seen_pixels(input, tuple(weight.shape[2:]), _spec(stride, padding, dilation, groups, delta, relu))
    if seen is not input:  # the strides of a view bind the sizes of an exported program to one another
        seen = seen.contiguous()
    output, quotient, norm = reference.branches(seen, weight, bias, alpha, spec)
    return output, quotient.to(input.dtype) if save_quotient else input.new_empty(0), norm


def decompositions() -> dict:
    """For ``torch.export.ExportedProgram.run_decompositions``: leaves ATen's operators alone in an exported model.

    Such a program (an AOTInductor package made of it, say, or an ONNX file) runs where this package is not installed.
    They are in none of PyTorch's own tables: Inductor refuses operators that are, where the variable CI is set.
    """
    return {**torch.export.default_decompositions(), torch.ops.ccn.compact_conv.default: _decomposed}


def flop_formulas() -> dict:
    """For ``torch.utils.flop_counter.FlopCounterMode(custom_mapping=...)``: a convolution's; norms are not counted."""

    def forward(input, weight, *_, out_shape):
        return 2 * math.prod(out_shape[0]) * math.prod(weight[1:])

    def backward(grad, input, weight, *rest, out_shape):
        mask = rest[-2]
        return (mask[0] + mask[1]) * 2 * math.prod(grad) * math.prod(weight[1:])

    return {torch.ops.ccn.compact_conv: forward, torch.ops.ccn.compact_conv_backward: backward}
