"""Random calls with zero patches in them, the naive two-branch module, and the criterion of accuracy."""

import dataclasses
from dataclasses import dataclass, field

import oracle
import torch
import torch.nn.functional as F

from ccn_kernels import functional

PUBLIC = (functional.compact_linear, functional.compact_conv1d, functional.compact_conv2d, functional.compact_conv3d)
CONVS = (F.linear, F.conv1d, F.conv2d, F.conv3d)
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
NHWC, SIZE = torch.channels_last, (3, 4, 7, 6)

# Inputs of every kind of strides; every one has the shape SIZE.
STRIDED = {
    "contiguous": lambda: torch.randn(SIZE),
    "channels_last": lambda: torch.randn(SIZE).contiguous(memory_format=NHWC),
    "reversed axes": lambda: torch.randn(6, 7, 4, 3).permute(3, 2, 1, 0),
    "swapped height and width": lambda: torch.randn(3, 4, 6, 7).transpose(2, 3),
    "every other image": lambda: torch.randn(6, 4, 7, 6)[::2],
    "every other channel": lambda: torch.randn(3, 8, 7, 6)[:, ::2],
    "every other row and column": lambda: torch.randn(3, 4, 14, 12)[:, :, ::2, ::2],
    "a crop": lambda: torch.randn(3, 5, 9, 9)[:, 1:, 1:8, 2:8],
    "channels of channels_last": lambda: torch.randn(3, 9, 7, 6).contiguous(memory_format=NHWC)[:, 2:6],
    "a crop of channels_last": lambda: torch.randn(3, 4, 9, 9).contiguous(memory_format=NHWC)[:, :, 1:8, 2:8],
    "one image expanded": lambda: torch.randn(1, 4, 7, 6).expand(SIZE),
    "one channel expanded": lambda: torch.randn(3, 1, 7, 6).expand(SIZE),
    "one number expanded": lambda: torch.full((), 0.5).expand(SIZE),
}


@dataclass
class Problem:
    """One call's operands, an incoming gradient, and its settings."""

    input: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    alpha: torch.Tensor
    grad: torch.Tensor
    delta: float = 0.01
    relu: bool = False
    geometry: dict = field(default_factory=dict)

    @property
    def rank(self):
        return self.weight.dim() - 2

    @property
    def operands(self):
        return self.input, self.weight, self.bias, self.alpha

    def oracle(self):
        return oracle.gradients(*self.operands, self.grad, delta=self.delta, relu=self.relu, **self.geometry)

    def magnitudes(self, power):
        settings = {"delta": self.delta, "relu": self.relu, **self.geometry}
        return oracle.magnitudes(*self.operands, self.grad, power, **settings)

    def run(self, backend):
        """Output and gradients of the package, by name."""

        def call(x, w, b, alpha):
            activation = "relu" if self.relu else None
            settings = {"delta": self.delta, "activation": activation, "backend": backend}
            return PUBLIC[self.rank](x, w, b, alpha, **self.geometry, **settings)

        return differentiate(call, self.operands, self.grad)

    def naive(self):
        """Output and gradients of the two-branch module in the operands' own dtype."""

        def call(x, w, b, alpha):
            return two_branch(x, w, b, alpha, self.delta, self.relu, **self.geometry)

        return differentiate(call, self.operands, self.grad)


def moved(tensor, device, dtype=None):
    """On the device and in the dtype, with the same strides and all that lies between its elements."""
    whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())
    return whole.to(device, dtype).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def placed(problem, device):
    """The problem with all its tensors on the device."""
    tensors = {name: getattr(problem, name) for name in ("input", "weight", "bias", "alpha", "grad")}
    tensors = {name: moved(tensor, device) for name, tensor in tensors.items() if tensor is not None}
    return dataclasses.replace(problem, **tensors)


def run_on(problem, device, backend):
    """Output and gradients of the package, computed on the device, on the CPU."""
    return {name: value.cpu() for name, value in placed(problem, device).run(backend).items()}


def differentiate(call, operands, grad):
    leaves = [None if t is None else t.detach().requires_grad_() for t in operands]
    y = call(*leaves)
    given = dict(zip(("input", "weight", "bias", "alpha"), leaves, strict=True))
    given = {name: leaf for name, leaf in given.items() if leaf is not None}
    parts = torch.autograd.grad(y, list(given.values()), grad)
    return {"output": y.detach(), **dict(zip(given, parts, strict=True))}


def two_branch(x, w, b, alpha, delta, relu, groups=1, **geometry):
    """Figure 4 of the paper in native dtype. Its one liberty is the root, guarded so that zero patches compare."""
    rank = w.dim() - 2
    # the yardstick keeps to PyTorch's best-trodden path; contiguous() would let strides be that channels_last has too
    conv, x, w = CONVS[rank], *(tensor.clone(memory_format=torch.contiguous_format) for tensor in (x, w))
    u = conv(x, w, None, groups=groups, **geometry) if rank else conv(x, w)
    squares = x.square().unflatten(1, (groups, -1)).sum(2)
    if rank:
        squares = conv(squares, w.new_ones(groups, 1, *w.shape[2:]), None, groups=groups, **geometry)
    empty = squares == 0
    r = torch.where(empty, 0.0, torch.where(empty, 1.0, squares).sqrt())
    d = torch.where(empty, 1.0, r) if delta == 0 else r + delta
    y = alpha * (u / d.repeat_interleave(w.shape[0] // groups, 1))
    y = y if b is None else y + b.reshape(-1, *[1] * rank)
    return y.relu() if relu else y


def in_format(tensor, channels_last):
    return tensor.contiguous(memory_format=FORMATS[tensor.dim()]) if channels_last else tensor


def make(
    rank=2, channels=(4, 6), size=8, kernel=3, *, batch=3, dtype=torch.float32, formats=(False, False), relu=False,
    bias=True, delta=0.01, alpha=1.7, scale=1.0, **geometry,
):  # fmt: skip
    """A problem whose first image is all zeros, and whose second one is in the first group and in a corner.

    ``formats``: whether input and weight are channels_last.
    """
    groups = geometry.get("groups", 1)
    x = torch.randn(batch, channels[0], *oracle.axes(size, rank)) * scale
    w = torch.randn(channels[1], channels[0] // groups, *oracle.axes(kernel, rank))
    if batch > 1:
        x[0] = 0
        x[1, : channels[0] // groups] = 0
        x[(-1, slice(None), *[slice(0, n // 2 + 1) for n in x.shape[2:]])] = 0 if rank else x[-1]
    x, w = in_format(x.to(dtype), formats[0]), in_format(w.to(dtype), formats[1])
    b = torch.randn(channels[1]).to(dtype) if bias else None
    problem = Problem(x, w, b, torch.tensor(alpha, dtype=dtype), w.new_empty(0), delta, relu, geometry)
    settle_gradient(problem)
    return problem


def settle_gradient(problem):
    """A random incoming gradient; 0 where rounding decides whether the ReLU is open, for neither answer is wrong."""
    y = oracle.compact_conv(*problem.operands, delta=problem.delta, **problem.geometry)
    problem.grad = torch.randn(y.shape).to(problem.input.dtype)
    if problem.relu:
        dtype = torch.finfo(problem.input.dtype)
        unsure = y.abs() < 8 * dtype.eps * (problem.magnitudes(1)["output"] + dtype.tiny)  # or too small for the dtype
        problem.grad[unsure] = 0


def relative_norm(tensor, expected):
    return (tensor.norm() / expected.norm().clamp_min(1e-300)).item()


def relative_error(actual, expected):
    """Norm-wise, as a number; NaN where the result is not finite."""
    return relative_norm(actual.double() - expected, expected) if actual.isfinite().all() else float("nan")


def assert_accurate(problem, results):
    """Norm-wise, twice the error of PyTorch's own operators; and no element that is an outlier."""
    dtype = problem.input.dtype
    eps, floor = torch.finfo(dtype).eps, 1e-14 if dtype == torch.float64 else 1e-6
    accumulator = torch.finfo(dtype if dtype == torch.float64 else torch.float32).eps
    expected, naive = problem.oracle(), problem.naive()
    noise, worst = problem.magnitudes(2), problem.magnitudes(1)
    assert results.keys() == expected.keys()
    for name, want in expected.items():
        got = results[name]
        assert (got.dtype, got.shape) == (dtype, want.shape), name
        assert got.isfinite().all(), f"{name} is not finite"
        # twice the step between subnormals: their roundings are not smaller for being near 0, as those of others are
        rounding = eps * (want.abs() + noise[name] + 2 * torch.finfo(dtype).tiny) + accumulator * worst[name]
        allowed = 2 * yardstick(name, naive[name], want, rounding, eps)
        error = relative_error(got, want)
        assert error <= allowed + floor, f"{name}: relative error {error:.3g}, allowed {allowed + floor:.3g}"
        # ATen sums some bf16 convolutions in bf16: what its own operators lose is explained too
        slack = max(1.0, allowed / (relative_norm(4 * rounding, want) or 1.0))
        excess = ((got.double() - want).abs() / (4 * slack * rounding)).max().item() if want.numel() else 0.0
        assert excess <= 1, f"{name}: an element is off by {excess:.3g} times what its terms explain"


def yardstick(name, naive, want, rounding, eps):
    """The relative error of PyTorch's own operators."""
    error = relative_error(naive, want)
    if name == "alpha":  # one number may come out right by chance: rounding its terms is the least it can cost
        return max(relative_norm(rounding, want), 0.0 if error != error else error)
    # So may a few: what roundings of random signs cost on average, and how far from it so few of them stray.
    fresh = relative_norm(rounding / 6, want) * (1 + 3 / max(1, want.numel()) ** 0.5)
    if not error <= 64 * max(eps, fresh):
        error = 4 * eps  # overflow, to NaN or to a norm of infinity: more than terms that cancel explain
    return max(error, fresh)


def assert_same_bits(one, two):
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def strides(tensor):
    """Those that have a meaning: of axes with more than one entry, in a tensor that has any."""
    return [s for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1 and tensor.numel()]


def assert_laid_out_alike(y, like):
    assert y.shape == like.shape
    assert strides(y) == strides(like)
    if y.dim() in FORMATS and y.numel():
        last = FORMATS[y.dim()]
        assert y.is_contiguous(memory_format=last) == like.is_contiguous(memory_format=last)
    assert y.is_contiguous() == like.is_contiguous()
