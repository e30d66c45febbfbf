"""Inputs that models really pass, and those that are refused."""

import itertools

import problems
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from ccn_kernels import ops


@pytest.mark.parametrize("name", problems.STRIDED)
@pytest.mark.behaviour("Inputs", "expanded, sliced, permuted and channels_last inputs; same strides out")
def test_strides(kind, name):
    layer, x = kind(4, 6, 3, padding=1), problems.STRIDED[name]()
    y = layer(x)
    problems.assert_laid_out_alike(y, nn.functional.conv2d(x, layer.weight, layer.bias, padding=1))
    torch.testing.assert_close(y, layer(x.contiguous()))


@pytest.mark.behaviour("Inputs", "no images: [0, C, H, W]")
def test_an_empty_batch(kind):
    layer, x = kind(3, 4, 3), torch.randn(0, 3, 6, 6, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert (y.shape, x.grad.shape) == ((0, 4, 4, 4), x.shape)
    assert all(p.grad.abs().max() == 0 for p in layer.parameters())


@pytest.mark.behaviour("Inputs", "an unbatched image: [C, H, W]")
def test_an_unbatched_image(kind):
    layer, x = kind(3, 4, 3), torch.randn(3, 6, 6)
    torch.testing.assert_close(layer(x), layer(x[None])[0])


REFUSED = {
    "complex": lambda x: x.to(torch.cfloat),
    "integer": lambda x: x.int(),
    "boolean": lambda x: x > 0,
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "sparse": lambda x: x.to_sparse(),
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # they are to go
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.behaviour(
    "Inputs",
    "complex, integer, boolean, float8, sparse, quantised inputs of a float layer",
    conv="RuntimeError",
    ours="RuntimeError that names `input`",
)
def test_what_is_refused(kind, name):
    x = REFUSED[name](torch.randn(1, 3, 6, 6))
    with pytest.raises(RuntimeError, match=None if kind is nn.Conv2d else "^input must be"):
        kind(3, 4, 3)(x)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64], ids=str)
@pytest.mark.behaviour("Inputs", "complex or integer operands alike, on a CPU", ours="RuntimeError that names `input`")
def test_operands_of_no_float(function, dtype):
    operands = torch.ones(1, 3, 6, 6, dtype=dtype), torch.ones(4, 3, 3, 3, dtype=dtype)
    if function is nn.functional.conv2d:
        assert function(*operands).dtype == dtype
    else:
        with pytest.raises(RuntimeError, match=r"^input must be"):
            function(*operands)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.behaviour("Inputs", "gradients of some operands only")
def test_gradients_of_some_operands(function, count):
    tensors = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3), torch.randn(4)
    full = [t.clone().requires_grad_() for t in tensors]
    expected = torch.autograd.grad(function(*full).square().sum(), full)
    for chosen in itertools.combinations(range(3), count):
        leaves = [t.clone().requires_grad_(i in chosen) for i, t in enumerate(tensors)]
        found = torch.autograd.grad(function(*leaves).square().sum(), [leaves[i] for i in chosen])
        for index, part in zip(chosen, found, strict=True):
            torch.testing.assert_close(part, expected[index])


@pytest.mark.behaviour("Inputs", "operands that alias: a weight that is a view of the input")
def test_operands_that_alias(function):
    base, apart = (torch.arange(96.0).sin().reshape(2, 3, 4, 4).requires_grad_() for _ in range(2))
    aliased = function(base, base[..., :3, :3])
    independent = function(apart, apart[..., :3, :3].clone())
    torch.testing.assert_close(aliased, independent)
    for y in (aliased, independent):
        y.square().sum().backward()
    torch.testing.assert_close(base.grad, apart.grad)


@pytest.mark.behaviour("Inputs", "an in-place ReLU right after the layer")
def test_an_inplace_relu(kind):
    layer = kind(3, 4, 3)
    x, grads = torch.randn(2, 3, 6, 6), []
    for inplace in (False, True):
        leaf = x.clone().requires_grad_()
        nn.ReLU(inplace)(layer(leaf)).square().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


class Tagged(torch.Tensor):
    """A subclass that adds nothing; PyTorch's functions return it."""


class Seen(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.append(getattr(function, "__name__", ""))
        return function(*args, **(kwargs or {}))


@pytest.mark.behaviour("Inputs", "a tensor subclass in, the same subclass out")
def test_a_subclass(kind):
    layer, x = kind(3, 4, 3), torch.randn(2, 3, 6, 6)
    y = layer(x.as_subclass(Tagged))
    assert type(y) is Tagged
    assert torch.equal(y.as_subclass(torch.Tensor), layer(x))
    y.sum().backward()
    assert type(layer.weight.grad) is torch.Tensor


@pytest.mark.behaviour("Inputs", "`__torch_function__` of a mode or a subclass sees one function")
def test_a_mode_sees_one_function(kind, function):
    with Seen() as mode:
        kind(3, 4, 3)(torch.randn(2, 3, 6, 6))
    assert function.__name__ in mode.names
    assert mode.names.count(function.__name__) == 1
    assert not {"conv2d", "linear"} & set(mode.names) - {function.__name__}


@pytest.mark.behaviour(
    "Inputs", "`FlopCounterMode` counts forward and backward", ours="works, by `custom_mapping=ops.flop_formulas()`"
)
def test_flops(kind):
    layer, x = kind(4, 6, 3, padding=1), torch.randn(2, 4, 5, 5, requires_grad=True)
    mapping = None if kind is nn.Conv2d else ops.flop_formulas()
    with FlopCounterMode(display=False, custom_mapping=mapping) as forward:
        y = layer(x)
    assert forward.get_total_flops() == 2 * y.numel() * 4 * 9
    with FlopCounterMode(display=False, custom_mapping=mapping) as backward:
        y.sum().backward()
    assert backward.get_total_flops() == 2 * forward.get_total_flops()
