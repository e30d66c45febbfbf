"""One shape in one dtype: operands, every provider's layer, and what each must compute, in exact fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import providers
import torch
import torch.nn.functional as F
from providers import DELTA
from shapes import Shape
from torch import Tensor, nn

from ccn_kernels import reference

ALPHA = 1.5  # not 1, so that a scale left out is seen
LIMITS = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 2e-3}  # relative errors; fp32 means TF32
RIVALS_SLACK = 3  # they round in more places, and their speed counts all the same
Named = dict[str, Tensor]


class Case:
    """``provider`` is a name of ``providers.GPU_PROVIDERS``; ``family``, the one of them that computes the same."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self.x = shape.input(torch.channels_last, device, dtype)
        self._known: dict[tuple[str, str], Named] = {}

    def layer(self, provider: str) -> nn.Module:
        layer = providers.GPU_PROVIDERS[provider](providers.convolution(self.shape))
        layer = layer.to(self.device, self.dtype, memory_format=torch.channels_last)
        for name, parameter in layer.named_parameters():
            if name == "alpha":
                parameter.data.fill_(ALPHA)
        return layer

    def compiled(self, provider: str, dry_run: bool) -> nn.Module:
        base, mode = provider.rsplit(", ", 1)
        how = {"backend": "eager"} if dry_run else {"mode": providers.MODES[mode]}
        return torch.compile(self.layer(base), dynamic=False, **how)

    def parameters(self, family: str) -> Named:
        """In fp32."""
        return {last_name(name): p.detach().float() for name, p in self.layer(family).named_parameters()}

    def expected(self, family: str) -> Named:
        """The output in fp32."""
        return self._once("output", family, self._output)

    def grad(self, family: str) -> Tensor:
        """The incoming gradient."""
        return self._once("grad", family, self._grad)["output"]

    def expected_gradients(self, family: str) -> Named:
        """Of the input and of every parameter, in fp32."""
        return self._once("gradients", family, self._gradients)

    def _once(self, kind: str, family: str, compute: Callable[[str], Named]) -> Named:
        if (kind, family) not in self._known:
            with exact_products():
                self._known[kind, family] = compute(family)
        return self._known[kind, family]

    def _leaves(self, family: str) -> Named:
        return {"input": self.x.detach().float(), **self.parameters(family)}

    def _convolved(self, family: str, leaves: Named) -> Tensor:
        """Before a ReLU."""
        operands = leaves["input"], leaves["weight"], leaves.get("bias")
        if is_plain(family):
            return F.conv2d(*operands, self.shape.stride, 1)
        return reference.compact_conv2d(*operands, leaves["alpha"], self.shape.stride, 1, delta=DELTA)

    def _output(self, family: str) -> Named:
        output = self._convolved(family, self._leaves(family))
        return {"output": output.relu() if has_relu(family) else output}

    def _grad(self, family: str) -> Named:
        output = self._convolved(family, self._leaves(family))
        return {"output": incoming_gradient(output, self.dtype, has_relu(family))}

    def _gradients(self, family: str) -> Named:
        leaves = {name: leaf.requires_grad_() for name, leaf in self._leaves(family).items()}
        output = self._convolved(family, leaves)
        output = output.relu() if has_relu(family) else output
        found = torch.autograd.grad(output, list(leaves.values()), self.grad(family).float())
        return dict(zip(leaves, found, strict=True))


@contextmanager
def exact_products() -> Iterator[None]:
    """IEEE fp32, and no search for the fastest algorithm."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.allow_tf32
    cudnn.benchmark = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32 = before


def incoming_gradient(output: Tensor, dtype: torch.dtype, relu: bool) -> Tensor:
    """Random, and along the output (before a ReLU): else alpha's gradient would be a difference of large numbers.

    0 where rounding may shut or open a ReLU.
    """
    size = output.square().mean().sqrt()
    grad = torch.randn_like(output) + output / size
    if relu:
        grad[output.abs() < 0.05 * size] = 0
    return grad.to(dtype)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.detach().double(), expected.double()
    return ((actual - expected).norm() / expected.norm()).item()


def has_relu(family: str) -> bool:
    return family.endswith("relu")


def is_plain(family: str) -> bool:
    return family.startswith("plain")


def last_name(name: str) -> str:
    """ "conv.weight" is a weight, whoever holds it."""
    return name.rsplit(".", 1)[-1]


def forward(layer: nn.Module, x: Tensor) -> Callable[[], Named]:
    def run() -> Named:
        with torch.no_grad():
            return {"output": layer(x)}

    return run


def training(layer: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], Named]:
    """Forward, and the gradients of the input and of every parameter."""
    leaves = {"input": x.detach().requires_grad_()}
    leaves |= {last_name(name): parameter for name, parameter in layer.named_parameters()}

    def run() -> Named:
        found = torch.autograd.grad(layer(leaves["input"]), list(leaves.values()), grad)
        return dict(zip(leaves, found, strict=True))

    return run
