"""The public functions by the Triton backend, with the tiles that it chooses itself."""

import calls
import oracle
import problems
import pytest
import test_functional
import torch
import torch.nn.functional as F
from calls import DEVICE, DTYPES, INTERPRETED, NARROW
from torch._subclasses import FakeTensorMode
from torch.func import grad, vmap
from torch.library import opcheck

from ccn_kernels import CompactConv2d, backends, ops
from ccn_kernels.functional import compact_conv2d

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

CHECKS = ("test_schema", "test_faketensor")  # not the formula of autograd: the operators have none, autograd.py has
LAST = (True, True)
FORMATS = [((False, False), False), (LAST, True)]  # of input and weight; and whether the ReLU is fused

# What the cases of test_functional leave out: channels that descriptors read, and those they nearly can.
CHANNELS = {
    "whole-images": {"channels": (16, 16), "padding": 1, "size": 4},
    "images-in-wide-padding": {"channels": (16, 16), "padding": 2, "size": 8},
    "images-all-padding": {"channels": (16, 8), "padding": 6, "dilation": 3, "size": 3},
    "wide": {"channels": (136, 200), "kernel": (1, 3), "size": (2, 5)},
    "pointwise": {"channels": (40, 72), "kernel": 1, "size": 5},
    "strided": {"channels": (16, 32), "padding": 1, "stride": 2},
    "strided-4": {"channels": (4, 8), "padding": 1, "stride": 2},
    "strided-24": {"channels": (24, 8), "padding": 1, "stride": 2},
    "grouped-4-each": {"channels": (8, 8), "padding": 1, "groups": 2, "size": 5},
    "grouped-8-each": {"channels": (16, 16), "padding": 1, "groups": 2, "size": 5},
    "grouped-24-each": {"channels": (48, 48), "padding": 1, "groups": 2, "size": 4},
    "grouped-16-to-2": {"channels": (32, 4), "padding": 1, "groups": 2, "size": 4},
    "grouped-2-to-16": {"channels": (4, 32), "padding": 1, "groups": 2, "size": 4},
    "depthwise": {"channels": (8, 8), "padding": 1, "groups": 8},
    "rgb": {"channels": (3, 64), "padding": 1},
    "63": {"channels": (63, 16), "padding": 1, "size": 3},
    "65": {"channels": (65, 16), "padding": 1, "size": 3},
    "to-63": {"channels": (16, 63), "padding": 1, "size": 3},
    "to-65": {"channels": (16, 65), "padding": 1, "size": 3},
    "512": {"channels": (512, 8), "padding": 1, "size": 1},
}

STRIDED_GRADIENTS = {
    "contiguous": lambda grad: grad.contiguous(),
    "channels_last": lambda grad: grad.contiguous(memory_format=torch.channels_last),
    "expanded": lambda grad: torch.ones(()).expand(grad.shape),  # what sum().backward() sends
    "permuted": lambda grad: grad.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "every other": lambda grad: torch.stack([grad, -grad], -1)[..., 0],
}


def check(problem):
    problems.assert_accurate(problem, calls.public(problem))


def penalties(call, problem):
    """Gradients of a function of gradients, for all operands."""
    leaves = [t.detach().requires_grad_() for t in problem.operands]
    parts = torch.autograd.grad(call(*leaves), leaves, problem.grad, create_graph=True)
    assert any(part.requires_grad for part in parts)
    return torch.autograd.grad(sum(part.square().sum() for part in parts), leaves, materialize_grads=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", test_functional.IMAGES)
def test_images(shape, dtype):
    formats, relu = FORMATS[dtype != torch.float32]
    check(problems.make(2, dtype=dtype, formats=formats, relu=relu, **test_functional.IMAGES[shape]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", test_functional.OTHERS)
def test_other_ranks(shape, dtype):
    """Linear layers of more rows: of a few numbers, PyTorch's own operators may round none by chance."""
    rank, settings = test_functional.OTHERS[shape]
    rows = {} if rank else {"batch": 16}
    check(problems.make(rank, dtype=dtype, relu=dtype != torch.float32, **{**settings, **rows}))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("setting", test_functional.SETTINGS)
def test_bias_and_relu(setting, dtype):
    settings = test_functional.SETTINGS[setting]
    check(problems.make(2, (8, 16), 5, padding=1, formats=LAST, dtype=dtype, **settings))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", CHANNELS)
def test_channels_in_and_out_of_step_with_descriptors(shape, dtype):
    relu = dtype != torch.float32
    check(problems.make(2, **{"size": 6, **CHANNELS[shape]}, dtype=dtype, formats=LAST, relu=relu))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("formats", [(True, False), (False, True)], ids=["input", "weight"])
@pytest.mark.parametrize("rank", [2, 3])
def test_one_operand_in_channels_last(rank, formats, dtype):
    check(problems.make(rank, (8, 8), 3, padding=1, dtype=dtype, formats=formats))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", problems.STRIDED)
def test_strided_inputs(name, dtype):
    problem = problems.make(2, (4, 6), problems.SIZE[2:], padding=1, groups=2, dtype=dtype)
    problem.input = calls.moved(problems.STRIDED[name](), problem.input.device, dtype)
    problems.settle_gradient(problem)
    check(problem)
    here = calls.placed(problem)
    like = F.conv2d(here.input, here.weight, padding=1, groups=2)
    y = compact_conv2d(here.input, here.weight, padding=1, groups=2, backend="triton")
    problems.assert_laid_out_alike(y, like)


@pytest.mark.parametrize(
    "strided",
    [
        lambda: torch.randn(6, 4, 6, 6)[:, :, ::2, ::2],
        lambda: torch.randn(6, 8, 3, 3)[:, ::2],
        lambda: torch.randn(3, 3, 4, 6).permute(3, 2, 1, 0),
        lambda: torch.randn(6, 4, 3, 3).transpose(2, 3),
        lambda: torch.randn(1, 4, 3, 3).expand(6, 4, 3, 3),
        lambda: torch.randn(6, 4, 1, 1).expand(6, 4, 3, 3),
        lambda: torch.randn(()).expand(6, 4, 3, 3),
    ],
    ids=["every other tap", "every other channel", "permuted", "transposed", "one filter", "one tap", "one number"],
)
def test_strided_weights(strided):
    problem = problems.make(2, padding=1, size=5)
    problem.weight = strided()
    check(problem)
    assert_fakes_tell_the_truth(problem)


def test_a_transposed_linear_weight_and_a_strided_bias():
    problem = problems.make(0, (6, 5))
    problem.weight, problem.bias = torch.randn(6, 5).t(), torch.randn(10)[::2]
    check(problem)
    problem.weight, problem.bias = torch.randn(5, 12)[:, ::2], torch.randn(1).expand(5)
    check(problem)


@pytest.mark.parametrize(("formats", "relu"), FORMATS, ids=["contiguous", "channels_last-relu"])
@pytest.mark.parametrize("strided", STRIDED_GRADIENTS)
def test_strided_incoming_gradients(strided, formats, relu):
    problem = problems.make(2, (8, 8), 4, padding=1, relu=relu, formats=formats, bias=False)
    problem.grad = STRIDED_GRADIENTS[strided](problem.grad)
    check(problem)


@pytest.mark.parametrize("formats", [(False, False), (True, False), (False, True), LAST])
@pytest.mark.parametrize(
    "settings",
    [
        {"channels": (4, 6)},
        {"channels": (4, 1)},
        {"channels": (1, 6)},
        {"channels": (4, 6), "kernel": 8},  # the output has one pixel
        {"channels": (4, 6), "batch": 1},
        {"channels": (4, 6), "size": (8, 1), "kernel": (3, 1)},
        {"channels": (4, 6), "kernel": 1},
        {"channels": (4, 6), "groups": 2, "stride": 2},
        {"channels": (4, 6), "kernel": 2, "padding": "same"},
    ],
    ids=str,
)
def test_output_has_the_strides_of_conv2d(settings, formats):
    problem = calls.placed(problems.make(2, **settings, formats=formats))
    like = F.conv2d(problem.input, problem.weight, **problem.geometry)
    y = compact_conv2d(problem.input, problem.weight, **problem.geometry, backend="triton")
    problems.assert_laid_out_alike(y, like)


def assert_fakes_tell_the_truth(problem):
    """What the compiler is told about shapes, dtypes and strides is what the kernels return."""
    here = calls.placed(problem)
    call = calls.resolved(here)

    def both_passes(grad, input, weight, bias, alpha):
        output, quotient, norm = ops.compact_conv(input, weight, bias, alpha, call.spec, True, "triton")
        saved = (output if problem.relu else None, quotient, norm, call.spec, calls.EVERY, "triton")
        parts = ops.compact_conv_backward(grad, input, weight, bias, alpha, *saved)
        return [(t.shape, t.dtype, problems.strides(t)) for t in (output, quotient, norm, *parts)]

    tensors = (here.grad, call.input, call.weight, call.bias, call.alpha)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in tensors]
        told = both_passes(*fakes)
    assert told == both_passes(*tensors)


@pytest.mark.parametrize("name", problems.STRIDED)
def test_fakes_of_strided_inputs(name):
    problem = problems.make(2, (4, 6), problems.SIZE[2:], padding=1, relu=True)
    problem.input = problems.STRIDED[name]()
    assert_fakes_tell_the_truth(problem)


@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
@pytest.mark.parametrize("save_quotient", [False, True])
@pytest.mark.parametrize("batch", [0, 2])
def test_the_operators_keep_to_their_schemas(batch, save_quotient, relu):
    """For any subset of gradients: outputs that alias nothing, operands left alone, and fakes like them."""
    problem = calls.placed(problems.make(2, (8, 8), 3, batch=batch, dtype=torch.float16, relu=relu))
    call = calls.resolved(problem)
    spec = [list(entry) if isinstance(entry, tuple) else entry for entry in call.spec]
    args = (call.input, call.weight, call.bias, call.alpha, *spec, save_quotient, "triton")
    opcheck(torch.ops.ccn.compact_conv.default, args, test_utils=CHECKS)
    output, _, norm = torch.ops.ccn.compact_conv(*args)
    quotient = torch.ops.ccn.compact_conv(*args[:-2], True, "triton")[1] if save_quotient or not relu else None
    saved = (output if relu else None, quotient, norm)
    for mask in ([False] * 4, [True] * 4, [True, True, False, False], [False, False, False, True]):
        args = (problem.grad, call.input, call.weight, call.bias, call.alpha, *saved, *spec, mask, "triton")
        opcheck(torch.ops.ccn.compact_conv_backward.default, args, test_utils=CHECKS)


def test_vmap_and_gradients_per_sample():
    problem = calls.placed(problems.make(2, (8, 8), 3, padding=1))

    def loss(weight, bias, alpha, image):
        return compact_conv2d(image, weight, bias, alpha, padding=1, backend="triton").square().sum()

    x, *parameters = problem.operands
    per_sample = vmap(grad(loss, argnums=(0, 1, 2)), in_dims=(None, None, None, 0))(*parameters, x)
    for index, image in enumerate(x):
        leaves = [t.detach().requires_grad_() for t in parameters]
        expected = torch.autograd.grad(loss(*leaves, image), leaves)
        for found, want in zip(per_sample, expected, strict=True):
            torch.testing.assert_close(found[index], want)


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
def test_no_images_at_all(rank, dtype, relu):
    problem = problems.make(rank, size=4, batch=0, dtype=dtype, relu=relu)
    results = calls.public(problem)
    problems.assert_laid_out_alike(results["output"], problems.CONVS[rank](problem.input, problem.weight))
    assert results["output"].dtype == dtype
    assert results["input"].shape == problem.input.shape
    for name in ("weight", "bias", "alpha"):
        assert torch.equal(results[name], torch.zeros_like(getattr(problem, name))), name


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_an_unbatched_input_is_a_batch_of_one(rank, last):
    problem = problems.make(rank, size=4, padding=1, batch=1)
    batched = calls.public(problem)
    x = problem.input[0]
    problem.input = x.movedim(0, -1).contiguous().movedim(-1, 0) if last else x
    problem.grad = problem.grad[0]
    single = calls.public(problem)
    for name, value in single.items():
        expected = batched[name][0] if name in ("output", "input") else batched[name]
        torch.testing.assert_close(value, expected, msg=name)


@pytest.mark.parametrize("leading", [(), (4,), (2, 3), (2, 0, 3)], ids=str)
def test_a_linear_layer_takes_any_leading_axes(leading):
    x, w, b = torch.randn(*leading, 5), torch.randn(3, 5), torch.randn(3)
    y = problems.PUBLIC[0](*map(calls.moved, (x, w, b)), 2.0, backend="triton").cpu()
    expected = oracle.compact_conv(x.reshape(-1, 5), w, b, 2.0).reshape(*leading, 3)
    torch.testing.assert_close(y, expected.float())


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_inplace_relu_may_follow(rank, dtype):
    problem = problems.make(rank, size=4, dtype=dtype, relu=True)

    def call(x, w, b, alpha):
        return problems.PUBLIC[rank](x, w, b, alpha, backend="triton").relu_()

    here = calls.placed(problem)
    results = problems.differentiate(call, here.operands, here.grad)
    problems.assert_accurate(problem, {name: value.cpu() for name, value in results.items()})


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("scale", [1e4, 1e-6])
@pytest.mark.parametrize("rank", [0, 2])
def test_activations_whose_squares_leave_16_bits(rank, scale, dtype):
    """1e4 squared overflows fp16; 1e-6 squared vanishes in it, and is among its subnormals before it is squared."""
    problem = problems.make(rank, (8, 8), 4, scale=scale, dtype=dtype, alpha=1.0)
    problem.input = problem.input.clamp(-6e4, 6e4)  # normal draws reach past fp16's largest number
    check(problem)


@pytest.mark.parametrize("scale", [1e15, 1e-15])
def test_activations_at_the_ends_of_the_contract(scale):
    check(problems.make(2, (8, 8), 4, padding=1, scale=scale))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("delta", [0.0, 0.01])
def test_gradients_at_zero_patches(delta, rank, relu, dtype):
    """The first image is all zeros: there the gradient is alpha W^T g / delta, and 0 where delta is."""
    problem = problems.make(rank, (8, 8), 4, dtype=dtype, delta=delta, relu=relu)
    results = calls.public(problem)
    problems.assert_accurate(problem, results)
    assert (results["input"][0].abs().max() == 0) == (delta == 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_an_all_zero_input_gives_exactly_the_bias(rank, dtype):
    problem = problems.make(rank, size=3, dtype=dtype)
    problem.input = torch.zeros_like(problem.input)
    results = calls.public(problem)
    bias = problem.bias.reshape(-1, *[1] * rank)
    assert torch.equal(results["output"], bias.expand_as(results["output"]))
    assert results["weight"].abs().max() == 0
    assert results["alpha"] == 0


@pytest.mark.parametrize("alpha", [-1.3, 0.0, 30.0])
@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
def test_any_alpha(alpha, relu):
    check(problems.make(2, (8, 8), 4, padding=1, alpha=alpha, relu=relu))


@pytest.mark.parametrize("kind", [torch.float16, torch.float32, torch.float64], ids=str)
def test_alpha_may_be_a_number_or_a_tensor_of_another_dtype(kind):
    x, w = (torch.randn(*shape, device=DEVICE).half() for shape in ((2, 3, 5, 5), (4, 3, 3, 3)))
    alpha = torch.tensor(1.5, dtype=kind, device=DEVICE, requires_grad=True)
    y = compact_conv2d(x, w, None, alpha, backend="triton")
    assert y.dtype == torch.float16
    assert torch.equal(y, compact_conv2d(x, w, None, 1.5, backend="triton"))
    y.sum().backward()
    assert alpha.grad.dtype == kind
    torch.testing.assert_close(alpha.grad.double() * 1.5, y.double().sum(), rtol=4e-3, atol=0)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_a_large_bias_does_not_cancel_in_the_gradient_of_the_input(dtype):
    """y - b taken for alpha u / d loses everything at b = 10, alpha = 0.1 in 16 bits."""
    problem = problems.make(2, (16, 16), 5, padding=1, dtype=dtype, alpha=0.1)
    problem.bias = torch.full((16,), 10.0, dtype=dtype)
    found, expected = calls.public(problem)["input"], problem.oracle()["input"]
    seen = problem.input.abs().sum(1, keepdim=True).ne(0).expand_as(found)  # dx of zero patches would drown the rest
    error = problems.relative_error(found[seen], expected[seen])
    assert error <= 2 * torch.finfo(dtype).eps, error


@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
@pytest.mark.parametrize(
    ("rank", "settings"),
    [(0, {}), (1, {"stride": 2, "padding": 1}), (2, {"channels": (8, 8), "padding": 1, "formats": LAST}), (3, {})],
    ids=["linear", "1-d", "2-d", "3-d"],
)
def test_double_backward_agrees_with_the_reference(rank, settings, relu):
    problem = calls.placed(problems.make(rank, **{"size": 4, **settings}, relu=relu))
    geometry = {**problem.geometry, "activation": "relu" if relu else None}

    def caller(backend):
        return lambda *operands: problems.PUBLIC[rank](*operands, **geometry, backend=backend)

    found, expected = (penalties(caller(backend), problem) for backend in ("triton", "reference"))
    for name, part, want in zip(("input", "weight", "bias", "alpha"), found, expected, strict=True):
        # what the penalty sees are first gradients of two backends, alike but for rounding
        assert problems.relative_error(part, want.double()) < 1e-5, name


@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
def test_operands_and_incoming_gradient_are_left_as_they_were(relu):
    problem = calls.placed(problems.make(2, (8, 8), 4, padding=1, dtype=torch.float16, relu=relu))
    tensors = (*problem.operands, problem.grad)
    before = [(t.clone(), t._version) for t in tensors]
    problem.run("triton")
    for tensor, (copy, version) in zip(tensors, before, strict=True):
        assert torch.equal(tensor, copy)
        assert tensor._version == version


def test_results_do_not_depend_on_the_grad_mode():
    problem = calls.placed(problems.make(2, (8, 8), 4, padding=1))
    expected = problem.run("triton")["output"]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = compact_conv2d(*problem.operands, padding=1, backend="triton")
        assert torch.equal(y, expected)
        assert not y.requires_grad


# Calls that differ from the first in one respect each: none may be taken for another.


def test_a_negated_view_is_negated():
    """Eager calls go without the operator, whose dispatch would see to it."""
    x, w = torch.randn(2, 16, 5, 5, device=DEVICE), torch.randn(8, 16, 3, 3, device=DEVICE)
    y = compact_conv2d(torch._neg_view(x), w, padding=1, backend="triton")
    torch.testing.assert_close(y, -compact_conv2d(x, w, padding=1, backend="triton"))


def test_a_layer_trains():
    """Two layers, one step: the gradients are those of the reference."""
    x = torch.randn(2, 3, 6, 6)
    found = {}
    for backend, device in (("triton", DEVICE), ("reference", torch.device("cpu"))):
        torch.manual_seed(1)
        model = torch.nn.Sequential(
            CompactConv2d(3, 16, 3, padding=1, activation="relu", backend=backend),
            CompactConv2d(16, 8, 3, stride=2, padding=1, backend=backend),
        ).to(device)
        model(x.to(device)).square().sum().backward()
        found[backend] = [parameter.grad.cpu() for parameter in model.parameters()]
    for one, two in zip(found["triton"], found["reference"], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_the_backend_of_choice(dtype, rank):
    assert backends.select(None, DEVICE.type, dtype, rank) == "triton"


@pytest.mark.parametrize(
    ("dtype", "reason"),
    [(torch.float64, "fp32 at most")] + ([(torch.bfloat16, "interpreter multiplies bfloat16")] if INTERPRETED else []),
    ids=str,
)
def test_other_dtypes_are_refused_with_the_reason(dtype, reason):
    x, w = (torch.randn(*shape, dtype=dtype, device=DEVICE) for shape in ((1, 2, 4, 4), (3, 2, 3, 3)))
    with pytest.raises(RuntimeError, match=f"backend='triton' cannot run this call: .*{reason}"):
        compact_conv2d(x, w, backend="triton")
    assert backends.select(None, DEVICE.type, dtype, 2) != "triton"
    assert compact_conv2d(x, w).isfinite().all()


def test_tensors_elsewhere_are_refused_with_the_reason():
    x, w = torch.randn(1, 2, 4, 4, device="meta"), torch.randn(3, 2, 3, 3, device="meta")
    with pytest.raises(RuntimeError, match=f"{DEVICE.type.upper()} tensors.*meta"):
        compact_conv2d(x, w, backend="triton")
