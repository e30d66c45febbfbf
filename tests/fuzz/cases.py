"""One random call: the numbers that decide it, which Hypothesis draws, prints and shrinks, and what is made of them."""

import math
from dataclasses import dataclass

import oracle
import problems
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import ccn_kernels

LAYERS = (ccn_kernels.CompactLinear, ccn_kernels.CompactConv1d, ccn_kernels.CompactConv2d, ccn_kernels.CompactConv3d)
PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
OPERANDS = ("input", "weight", "bias", "alpha")


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in memory: its axes, outermost first; of each axis the step and the margin before its first
    entry; and whether it repeats that entry."""

    order: tuple[int, ...]
    steps: tuple[int, ...]
    margins: tuple[int, ...]
    expanded: tuple[bool, ...]

    def hold(self, values):
        """The values laid out so, with NaN in all gaps."""
        shape = values.shape
        for axis, repeats in enumerate(self.expanded):
            values = values.narrow(axis, 0, min(1, shape[axis])) if repeats else values
        extents = [margin + n * step for n, step, margin in zip(values.shape, self.steps, self.margins, strict=True)]
        whole = values.new_full([extents[axis] for axis in self.order], math.nan)
        whole = whole.permute([self.order.index(axis) for axis in range(len(shape))])
        held = whole[tuple(slice(margin, None, step) for step, margin in zip(self.steps, self.margins, strict=True))]
        return held.copy_(values).expand(shape)

    def shared_zeros(self, values):
        """The values, with 0 in every entry whose repetitions stand where one of the values is 0."""
        zero = values == 0
        for axis, repeats in enumerate(self.expanded):
            zero = zero.any(axis, keepdim=True).expand(values.shape) if repeats else zero
        return values.masked_fill(zero, 0)


@dataclass(frozen=True)
class Case:
    """A valid call. ``str`` of it is the expression that makes it again."""

    seed: int
    rank: int
    dtype: torch.dtype
    leading: tuple[int, ...]  # axes before the channels: (N,), () where unbatched, any of a linear layer
    groups: int
    channels: tuple[int, int]  # of one group, in and out
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int | tuple[int, ...]
    padding: int | str | tuple[int, ...]
    dilation: int | tuple[int, ...]
    padding_mode: str
    layouts: tuple[Layout, Layout, Layout, Layout]  # of input, weight, bias and incoming gradient
    bias: bool
    relu: bool
    delta: float
    alpha: float
    scale: float  # of the input
    weight_scale: float
    zeros: tuple[float, float, float]  # shares of pixels, of images, of groups in an image
    learned: tuple[str, ...]  # operands that require gradients
    asked: tuple[str, ...]  # those of them whose gradients are asked for
    layer: bool  # whether by the layer, or by the function

    @property
    def geometry(self):
        if not self.rank:
            return {}
        names = ("stride", "padding", "dilation", "groups")
        modes = {} if self.padding_mode == "zeros" else {"padding_mode": self.padding_mode}
        return {name: getattr(self, name) for name in names} | modes

    def problem(self):
        """The same tensors every time."""
        torch.manual_seed(self.seed)
        outputs = self.channels[1] * self.groups
        input, weight, bias, gradient = self.layouts
        problem = Example(
            input.hold(self.input(math.prod(self.leading))),
            weight.hold((numbers(outputs, self.channels[0], *self.kernel) * self.weight_scale).to(self.dtype)),
            bias.hold(numbers(outputs).to(self.dtype)) if self.bias else None,
            torch.tensor(self.alpha, dtype=self.dtype),
            torch.empty(0),
            self.delta,
            self.relu,
            self.geometry,
            case=self,
        )
        problems.settle_gradient(problem)
        problem.grad = gradient.hold(gradient.shared_zeros(problem.grad))
        problem.grad = problem.grad * moderation(problem)
        return problem

    def input(self, batch):
        x = numbers(batch, self.groups, self.channels[0], *self.size) * self.scale
        one = (1,) * self.rank
        shapes = (batch, 1, 1, *self.size), (batch, 1, 1, *one), (batch, self.groups, 1, *one)
        for share, shape in zip(self.zeros, shapes, strict=True):
            x = x * (torch.rand(shape) >= share)
        x = x.flatten(1, 2)
        return (x.clamp(-6e4, 6e4) if self.dtype == torch.float16 else x).to(self.dtype)


@dataclass
class Example(problems.Problem):
    """A problem of a case: by the function or the layer, and of the gradients those that are asked for."""

    case: Case | None = None

    def oracle(self):
        return self.reported(super().oracle())

    def naive(self):
        def call(x, w, b, alpha):
            x, geometry = subsampled(*zero_padded(x, w, **self.geometry), w)
            return problems.two_branch(x, w, b, alpha, self.delta, self.relu, **geometry)

        return self.reported(problems.differentiate(call, self.operands, self.grad))

    def magnitudes(self, power):
        """Of a pixel that is padded with, every copy's gradient is rounded: among the smallest numbers too."""
        results = super().magnitudes(power)
        x = torch.zeros(self.input.shape, dtype=torch.double, requires_grad=True)
        padded, _ = zero_padded(x, self.weight, **self.geometry)
        if padded is not x:
            results["input"] += 2 * torch.finfo(self.input.dtype).tiny * torch.autograd.grad(padded.sum(), x)[0]
        return results

    def reported(self, results):
        return {name: value for name, value in results.items() if name in ("output", *self.case.asked)}

    def run(self, backend):
        """Output, and the gradients asked for."""
        leaves = dict(zip(OPERANDS, self.operands, strict=True))
        leaves = {name: leaf.detach() for name, leaf in leaves.items() if leaf is not None}
        for name in self.case.learned:
            leaves[name].requires_grad_()
        y = self.call(leaves, backend)
        assert y.requires_grad == bool(self.case.learned)
        asked = [leaves[name] for name in self.case.asked]
        parts = torch.autograd.grad(y, asked, self.grad.reshape(y.shape)) if asked else ()
        return {"output": y.detach().reshape(self.grad.shape), **dict(zip(self.case.asked, parts, strict=True))}

    def call(self, leaves, backend):
        x, w, b, alpha = (leaves.get(name) for name in OPERANDS)
        settings = {"delta": self.delta, "activation": "relu" if self.relu else None, "backend": backend}
        x = self.led(x)
        if self.case.layer:
            parameters = {name: leaves[name] for name in leaves if name != "input"}
            return functional_call(self.layer(LAYERS, **settings), parameters, x)
        alpha = alpha if "alpha" in self.case.learned else alpha.item()
        return problems.PUBLIC[self.rank](x, w, b, alpha, **self.geometry, **settings)

    def led(self, x):
        """With the input's leading axes for its batch."""
        return x.reshape(*self.case.leading, *x.shape[1:])

    def layer(self, kinds, **settings):
        """The layer of this rank, without parameters of its own."""
        inputs, outputs = (n * self.case.groups for n in self.case.channels)
        sizes = (inputs, outputs, self.case.kernel) if self.rank else (inputs, outputs)
        return kinds[self.rank](*sizes, bias=self.case.bias, device="meta", **self.geometry, **settings)

    @property
    def has_plain_layout(self):
        """Whether the output is laid out as that of PyTorch's own layer: it must not be asked for a strided kernel of
        one tap (see CONTRIBUTING.md), takes a sequence's permuted weight for channels_last, reads a format out of the
        strides of filters of one number, and lays volumes out as the algorithm likes that it happens to take."""
        one_tap = set(self.case.kernel) == {1}
        overruns = one_tap and set(oracle.axes(self.case.stride, self.rank)) != {1}
        return self.rank in (0, 2) and not overruns and not (one_tap and self.case.channels[0] == 1)

    def plain(self):
        """What PyTorch's own layer gives, for its format; not in bf16, see ccn_kernels.reference."""
        parameters = {"weight": self.weight} if self.bias is None else {"weight": self.weight, "bias": self.bias}
        x = self.led(self.input)
        if x.dtype == torch.bfloat16:
            x, parameters = widened(x), {name: widened(tensor) for name, tensor in parameters.items()}
        return functional_call(self.layer(PLAIN), parameters, x)


def widened(tensor):
    """In fp32, laid out alike."""
    whole = tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)
    return whole.float().as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def numbers(*shape):
    """Normal ones, none so close to 0 that a tiny scale takes it out of the contract."""
    values = torch.randn(shape)
    return values.sign() * values.abs().clamp_min(0.1)


def zero_padded(x, weight, padding_mode="zeros", **geometry):
    """Any other padding, done."""
    if padding_mode == "zeros":
        return x, geometry
    kernel = weight.shape[2:]
    amounts = oracle.padding_amounts(geometry["padding"], kernel, oracle.axes(geometry["dilation"], len(kernel)))
    x = F.pad(x, [n for pair in reversed(amounts) for n in pair], mode=padding_mode)
    return x, geometry | {"padding": 0}


def subsampled(x, geometry, weight):
    """What a strided kernel of one tap reads; of such a kernel PyTorch's convolution may overrun its memory."""
    rank = weight.dim() - 2
    steps = oracle.axes(geometry.get("stride", 1), rank)
    if set(weight.shape[2:]) != {1} or set(steps) == {1}:
        return x, geometry
    amounts = oracle.padding_amounts(geometry["padding"], weight.shape[2:], oracle.axes(geometry["dilation"], rank))
    x = F.pad(x, [n for pair in reversed(amounts) for n in pair])
    return x[(..., *(slice(None, None, step) for step in steps))], geometry | {"stride": 1, "padding": 0}


def moderation(problem):
    """What the incoming gradient must be multiplied by for gradients that its dtype can hold."""
    peak = max(value.abs().max().item() if value.numel() else 0.0 for value in problem.magnitudes(1).values())
    limit = torch.finfo(problem.input.dtype).max / 16
    return min(1.0, limit / peak) if peak else 1.0
