"""One layer in one dtype and memory format: its operands, and what every provider must compute, in exact arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import reference
from ..precision import tf32
from ..workloads import Layer
from .settings import DTYPES

ALPHA, DELTA = 1.5, 0.01  # alpha is not 1, so that a scale left out is seen
# Relative errors that are let through; rivals may have three times as much: they round in more places.
LIMITS = {"float32": 1e-5, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 1e-2}
RIVALS_SLACK = 3
_CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MODULES = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
Named = dict[str, Tensor]


class Family(NamedTuple):
    """What is computed: providers of one family must agree."""

    compact: bool
    bias: bool = True
    relu: bool = False


class Case:
    def __init__(self, layer: Layer, dtype: str, memory_format: str, device: str) -> None:
        self.layer, self.dtype_name, self.dtype, self.device = layer, dtype, DTYPES[dtype], device
        self.memory_format = _format(layer, memory_format)
        x = torch.randn(layer.batch, layer.in_channels, *(layer.size,) * layer.rank, device=device,
                        generator=torch.Generator(device).manual_seed(1))  # fmt: skip
        self.x = x.to(self.dtype).contiguous(memory_format=self.memory_format)
        self._known: dict[tuple[str, Family], Named] = {}

    def plain(self, bias: bool = True) -> nn.Module:
        """The plain layer; every one has the same weights."""
        layer = self.layer
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if layer.rank == 0:
                made: nn.Module = nn.Linear(layer.in_channels, layer.out_channels)
            else:
                made = _MODULES[layer.rank](layer.in_channels, layer.out_channels, layer.kernel, layer.stride,
                                            layer.padding, groups=layer.groups)  # fmt: skip
        if not bias:
            made.register_parameter("bias", None)
        return made.to(self.device, self.dtype, memory_format=self.memory_format)  # type: ignore[call-overload]

    def expected(self, family: Family) -> Named:
        """The output."""
        return self._once("output", family)

    def grad(self, family: Family) -> Tensor:
        """The incoming gradient, in the case's dtype."""
        return self._once("grad", family)["output"]

    def expected_gradients(self, family: Family) -> Named:
        """Of the input and of every parameter."""
        return self._once("gradients", family)

    def _once(self, kind: str, family: Family) -> Named:
        if (kind, family) not in self._known:
            compute = {"output": self._output, "grad": self._grad, "gradients": self._gradients}[kind]
            with exact_products():
                self._known[kind, family] = compute(family)
        return self._known[kind, family]

    def _leaves(self, family: Family) -> Named:
        """Wide enough to be exact beside the case's dtype."""
        wide = torch.float64 if self.dtype_name == "float32" else torch.float32
        leaves = {"input": self.x, **dict(self.plain(family.bias).named_parameters())}
        if family.compact:
            leaves["alpha"] = torch.tensor(ALPHA, device=self.device)
        return {name: leaf.detach().to(wide) for name, leaf in leaves.items()}

    def _product(self, family: Family, leaves: Named) -> Tensor:
        """Before a ReLU."""
        operands, spec = (leaves["input"], leaves["weight"], leaves.get("bias")), self.layer.spec
        if family.compact:
            return reference.compact_conv(*operands, leaves["alpha"], spec)
        if spec.rank == 0:
            return F.linear(*operands)
        return _CONVS[spec.rank](*operands, spec.stride, spec.padding, spec.dilation, spec.groups)

    def _output(self, family: Family) -> Named:
        output = self._product(family, self._leaves(family))
        return {"output": output.relu() if family.relu else output}

    def _grad(self, family: Family) -> Named:
        output = self._product(family, self._leaves(family))
        return {"output": incoming_gradient(output, self.dtype, family.relu)}

    def _gradients(self, family: Family) -> Named:
        leaves = {name: leaf.requires_grad_() for name, leaf in self._leaves(family).items()}
        output = self._product(family, leaves)
        output = output.relu() if family.relu else output
        found = torch.autograd.grad(output, list(leaves.values()), self.grad(family).to(output.dtype))
        return dict(zip(leaves, found, strict=True))


def _format(layer: Layer, name: str) -> torch.memory_format:
    if name == "contiguous":
        return torch.contiguous_format
    return {2: torch.channels_last, 3: torch.channels_last_3d}[layer.rank]


def precision(dtype: str) -> AbstractContextManager[None]:
    """TF32 for "tf32", IEEE arithmetic for all others."""
    return tf32(dtype == "tf32")


@contextmanager
def exact_products() -> Iterator[None]:
    """IEEE arithmetic, and no search for the fastest algorithm."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        with precision("float32"):
            yield
    finally:
        torch.backends.cudnn.benchmark = before


def incoming_gradient(output: Tensor, dtype: torch.dtype, relu: bool) -> Tensor:
    """Random, and along the output (before a ReLU): else alpha's gradient would be a difference of large numbers.

    Always the same; 0 where rounding may shut or open a ReLU.
    """
    size = output.square().mean().sqrt()
    seeded = torch.Generator(output.device).manual_seed(2)
    grad = torch.randn(output.shape, dtype=output.dtype, device=output.device, generator=seeded) + output / size
    if relu:
        grad[output.abs() < 0.05 * size] = 0
    return torch.empty_like(output, dtype=dtype).copy_(grad)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.detach().double(), expected.double()
    return ((actual - expected).norm() / expected.norm()).item()


def limit(dtype: str, rival: bool) -> float:
    return LIMITS[dtype] * (RIVALS_SLACK if rival else 1)
