"""Who is measured: each provider makes, for a shape, a layer with the same weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from shapes import Shape
from torch import Tensor, nn

from ccn_kernels import CompactConv2d

DELTA = 0.01


class TwoBranch(nn.Module):
    """The paper's module (figure 4) as its readers write it: plain operators in the input's own dtype.

    The sums over patches are a convolution with ones, or an average pool.
    """

    def __init__(self, conv: nn.Conv2d, *, pool: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(conv.in_channels, conv.out_channels, 3, stride=conv.stride, padding=1, bias=False)
        self.conv.weight, self.bias, self.pool = conv.weight, conv.bias, pool
        self.alpha = nn.Parameter(torch.ones(()))
        self.register_buffer("ones", torch.ones(1, 1, 3, 3))

    def forward(self, input: Tensor) -> Tensor:
        squares = input.square().sum(1, keepdim=True)  # [N, 1, H, W]
        if self.pool:
            sums = F.avg_pool2d(squares, 3, stride=self.conv.stride, padding=1, divisor_override=1)
        else:
            sums = F.conv2d(squares, self.ones, stride=self.conv.stride, padding=1)
        return self.alpha * self.conv(input) / (sums.sqrt() + DELTA) + self.bias.view(1, -1, 1, 1)


def _fused(conv: nn.Conv2d) -> nn.Module:
    return CompactConv2d.from_conv(conv, delta=DELTA)


def _triton(conv: nn.Conv2d, activation: str | None = None) -> nn.Module:
    return CompactConv2d.from_conv(conv, delta=DELTA, activation=activation, backend="triton")


def _without_bias(conv: nn.Conv2d) -> nn.Module:
    bare = nn.Conv2d(conv.in_channels, conv.out_channels, 3, stride=conv.stride, padding=1, bias=False)
    bare.weight = conv.weight
    return bare


PROVIDERS: dict[str, Callable[[nn.Conv2d], nn.Module]] = {
    "plain": lambda conv: conv,
    "two-branch, ones": lambda conv: TwoBranch(conv, pool=False),
    "two-branch, pool": lambda conv: TwoBranch(conv, pool=True),
    "fused": _fused,
}

# On a GPU; "plain, again" shows how far two measurements of the same thing lie apart.
GPU_PROVIDERS: dict[str, Callable[[nn.Conv2d], nn.Module]] = {
    **{name: PROVIDERS[name] for name in ("plain", "two-branch, ones", "two-branch, pool")},
    "plain, again": lambda conv: conv,
    "plain, no bias": _without_bias,
    "plain, relu": lambda conv: nn.Sequential(conv, nn.ReLU()),
    "ours": _triton,
    "ours, relu": lambda conv: _triton(conv, "relu"),
}

# torch.compile's mode. Its own CUDA graphs stay off: every provider is measured in a graph, and as called.
MODES = {"compiled": "default", "max-autotune": "max-autotune-no-cudagraphs"}
COMPILED = ("two-branch, ones, compiled", "two-branch, pool, compiled", "two-branch, pool, max-autotune")


def make(provider: str, shape: Shape, memory_format: torch.memory_format) -> nn.Module:
    """A provider's layer for a shape; all providers get the same weights."""
    return PROVIDERS[provider](convolution(shape)).to(memory_format=memory_format)


def convolution(shape: Shape) -> nn.Conv2d:
    """A shape's plain layer, always with the same weights."""
    torch.manual_seed(0)
    return nn.Conv2d(shape.in_channels, shape.out_channels, 3, stride=shape.stride, padding=1)


def forward(layer: nn.Module, input: Tensor) -> Callable[[], None]:
    """One inference call."""

    def run() -> None:
        with torch.no_grad():
            layer(input)

    return run


def training_step(layer: nn.Module, input: Tensor) -> Callable[[], None]:
    """Forward, and the gradients of the input and of every parameter."""
    input = input.detach().requires_grad_()
    wanted = [input, *layer.parameters()]
    with torch.no_grad():
        grad = torch.randn_like(layer(input))

    def run() -> None:
        torch.autograd.grad(layer(input), wanted, grad)

    return run


def check(shape: Shape) -> None:
    """The correctness gate: no speed is shown for a layer that computes something else."""
    input = shape.input(torch.channels_last)
    reference = make("two-branch, ones", shape, torch.channels_last)(input)
    fused = make("fused", shape, torch.channels_last)(input)
    torch.testing.assert_close(fused, reference, rtol=1e-4, atol=1e-4)
