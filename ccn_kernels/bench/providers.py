"""Who is measured: every provider as calls of a forward, a backward or both, over any layer, with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._functorch import config as functorch

from .. import backends
from ..layers import CompactConv1d, CompactConv2d, CompactConv3d, CompactLinear
from .case import ALPHA, DELTA, Case, Family, Named, limit

_COMPACT = {0: CompactLinear.from_linear, 1: CompactConv1d.from_conv, 2: CompactConv2d.from_conv,
            3: CompactConv3d.from_conv}  # fmt: skip
_CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
# torch.compile's mode. Its own CUDA graphs stay off: every provider is measured in a graph, and as called.
MODES = {"two_branch_compiled": "default", "two_branch_max_autotune": "max-autotune-no-cudagraphs"}
# Ours: by the backend that is chosen, or one by its name, so that a run can have several side by side.
OURS: dict[str, str | None] = {"ccn": None, "ccn_cuda": "cuda", "ccn_triton": "triton"}
# Inductor fuses an average pool, while it leaves a convolution with ones to cuDNN: autotuning is for the pool alone.
VARIANTS: dict[str, tuple[str | None, ...]] = {
    "conv": (None, "again", "relu"), "two_branch": ("ones", "pool"), "two_branch_compiled": ("ones", "pool"),
    "two_branch_max_autotune": ("pool",), "ccn": (None, "relu"),
}  # fmt: skip


class Entrant(NamedTuple):
    """A provider's row: ``variant`` tells rows of one provider apart, ``backend`` is ours."""

    provider: str
    variant: str | None = None
    backend: str | None = None


class Contender(NamedTuple):
    """A call, what it must return, and how far off it may be."""

    call: Callable[[], Any]
    expected: Named
    limit: float
    error: float | None = None  # where it was found another way than by what the call returns
    resident: Callable[[], int] = int  # bytes of its own that live between calls


def entrants(providers: Iterable[str], names: Sequence[str], rank: int) -> list[Entrant]:
    """``names``: the backends of `ccn`. A linear layer's two-branch module has one form."""
    found = []
    for provider in providers:
        by = names if provider == "ccn" else (OURS.get(provider),)
        for variant in VARIANTS.get(provider, (None,)):
            form = None if rank == 0 and variant in ("ones", "pool") else variant
            found += [Entrant(provider, form, name) for name in by]
    return list(dict.fromkeys(found))


def family_of(entrant: Entrant) -> Family:
    return Family(not entrant.provider.startswith("conv"), entrant.provider != "conv_nobias", entrant.variant == "relu")


def contender(entrant: Entrant, case: Case, which: str) -> Contender:
    """Raises whatever keeps the provider from running this case; what it says becomes the row's failure."""
    family = family_of(entrant)
    expected: Named = {}
    if which != "backward":
        expected |= case.expected(family)
    if which != "forward":
        expected |= case.expected_gradients(family)
    calls = DIRECT.get(entrant.provider, _of_module)(entrant, case, which)
    return Contender(calls, expected, limit(case.dtype_name, rival=entrant.provider not in OURS))


def module(entrant: Entrant, case: Case) -> nn.Module:
    """The provider as a layer."""
    if entrant.provider.startswith("conv"):
        plain = case.plain(bias=entrant.provider == "conv")
        return nn.Sequential(plain, nn.ReLU()) if entrant.variant == "relu" else plain
    if entrant.provider in OURS:
        settings = {"alpha": ALPHA, "delta": DELTA, "activation": entrant.variant, "backend": entrant.backend}
        make: Callable[..., nn.Module] = _COMPACT[case.layer.rank]
        return make(case.plain(), **settings)
    two_branch = TwoBranch(case.plain(), case, pool=entrant.variant == "pool")
    if entrant.provider not in MODES:
        return two_branch
    if backends.triton.interpreting():  # a dry run
        two_branch.compile(dynamic=False, backend="eager")
    else:
        two_branch.compile(dynamic=False, mode=MODES[entrant.provider])
    return two_branch


class TwoBranch(nn.Module):
    """The paper's module (figure 4) as its readers write it: plain operators in the input's own dtype.

    The sums over patches are a convolution with ones, or an average pool; a linear layer's need neither.
    """

    ones: Tensor

    def __init__(self, plain: Any, case: Case, *, pool: bool) -> None:
        super().__init__()
        self.spec, self.kernel, self.pool = case.layer.spec, (case.layer.kernel,) * case.layer.rank, pool
        self.weight, self.bias = plain.weight, plain.bias
        self.alpha = nn.Parameter(torch.full((), ALPHA, device=case.device, dtype=case.dtype))
        ones = torch.ones(case.layer.groups, 1, *self.kernel, device=case.device, dtype=case.dtype)
        self.register_buffer("ones", ones)

    def forward(self, input: Tensor) -> Tensor:
        spec = self.spec
        if spec.rank == 0:
            norm = input.square().sum(-1, keepdim=True).sqrt()
            return self.alpha * F.linear(input, self.weight) / (norm + DELTA) + self.bias
        conv = _CONVS[spec.rank]
        squares = input.square().unflatten(1, (spec.groups, -1)).sum(2)  # [N, groups, *spatial]
        if self.pool:
            sums = self._pooled(squares)
        else:
            sums = conv(squares, self.ones, None, spec.stride, spec.padding, spec.dilation, spec.groups)
        product = conv(input, self.weight, None, spec.stride, spec.padding, spec.dilation, spec.groups)
        divisor = sums.sqrt() + DELTA
        if spec.groups == 1:
            quotient = self.alpha * product / divisor
        else:
            by_group = product.unflatten(1, (spec.groups, -1))  # [N, groups, O / groups, *out]
            quotient = (self.alpha * by_group / divisor.unsqueeze(2)).flatten(1, 2)
        return quotient + self.bias.view(-1, *(1,) * spec.rank)

    def _pooled(self, squares: Tensor) -> Tensor:
        args = squares, self.kernel, self.spec.stride, self.spec.padding
        if self.spec.rank == 1:  # which cannot be told to divide by 1
            return F.avg_pool1d(*args) * self.kernel[0]
        return {2: F.avg_pool2d, 3: F.avg_pool3d}[self.spec.rank](*args, divisor_override=1)


def _of_module(entrant: Entrant, case: Case, which: str) -> Callable[[], Named]:
    return calls_of(module(entrant, case), case, family_of(entrant), which)


def calls_of(layer: nn.Module, case: Case, family: Family, which: str) -> Callable[[], Named]:
    """A pass as one call that returns the output, the gradients of the input and of every parameter, or all of them."""
    if which == "forward":
        return torch.no_grad()(lambda: {"output": layer(case.x)})
    leaves = {"input": case.x.detach().requires_grad_()}
    leaves |= {name.rsplit(".", 1)[-1]: parameter for name, parameter in layer.named_parameters()}
    grad = case.grad(family)

    def gradients(output: Tensor, keep: bool) -> Named:
        found = torch.autograd.grad(output, list(leaves.values()), grad, retain_graph=keep)
        return dict(zip(leaves, found, strict=True))

    def training() -> Named:
        output = layer(leaves["input"])
        return {"output": output, **gradients(output, False)}

    if which == "training":
        return training
    with functorch.patch(donated_buffer=False):  # a compiled pass would free what it is to keep
        output = layer(leaves["input"])
    return lambda: gradients(output, True)


def _cudnn_epilogue(entrant: Entrant, case: Case, which: str) -> Callable[[], Named]:
    """The Triton backend's hybrid: cuDNN computes the products, our fused kernels all else."""
    reason = backends.triton.unavailable()
    if reason is None and case.device == "cpu" and not backends.triton.interpreting():
        reason = "cuDNN needs a CUDA GPU"
    if reason is None and case.dtype_name == "float16" and not backends.triton.interpreting():
        reason = "the product overflows fp16 before it is divided"
    if reason is not None:
        raise RuntimeError(reason)
    from .direct import HYBRIDS, Direct

    return Direct(case, HYBRIDS).calls(which)


def _cudnn_frontend(entrant: Entrant, case: Case, which: str) -> Callable[[], Named]:
    from .frontend import fused_graph

    return fused_graph(case, which)


DIRECT: dict[str, Callable[[Entrant, Case, str], Callable[[], Named]]] = {
    "cudnn_epilogue": _cudnn_epilogue,
    "cudnn_frontend": _cudnn_frontend,
}
