"""The operators `ccn::compact_conv` and `ccn::compact_conv_backward` as PyTorch's compiler relies on them."""

import itertools

import problems
import pytest
import torch
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from ccn_kernels import ops
from ccn_kernels.spec import ConvSpec

CHECKS = ("test_schema", "test_faketensor")  # not the formula of autograd: the operators have none, autograd.py has
TRACED = "test_aot_dispatch_dynamic"
FORWARD, BACKWARD = torch.ops.ccn.compact_conv, torch.ops.ccn.compact_conv_backward

CASES = {
    "linear": {"rank": 0},
    "1-d": {"rank": 1, "stride": 2, "padding": 1},
    "2-d": {"padding": 1},
    "2-d-grouped": {"groups": 2, "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    "2-d-pointwise": {"kernel": 1},
    "2-d-pointwise-strided": {"kernel": 1, "stride": 2},
    "2-d-one-output-channel": {"channels": (4, 1)},
    "2-d-one-input-channel": {"channels": (1, 6)},
    "2-d-one-pixel": {"kernel": 8},
    "2-d-one-row": {"size": (3, 8)},
    "2-d-one-image": {"batch": 1},
    "2-d-no-images": {"batch": 0},
    "3-d": {"rank": 3, "size": 4},
}
FORMATS = [(False, False), (True, False), (False, True), (True, True)]


def arguments(backend, rank=2, save=True, **settings):
    """Operands and spec of a forward call, and the call itself as the operator takes it."""
    problem = problems.make(rank, **settings)
    geometry = {key: settings.get(key, default) for key, default in (("stride", 1), ("padding", 0), ("dilation", 1))}
    per_axis = [value if isinstance(value, tuple) else (value,) * rank for value in geometry.values()]
    spec = ConvSpec(*per_axis, settings.get("groups", 1), 0.01, problem.relu)
    flat = [list(entry) if isinstance(entry, tuple) else entry for entry in spec]
    return problem, flat, (*problem.operands, *flat, save, backend)


def backward_arguments(backend, mask, **settings):
    """What autograd.py hands to the backward pass: the output under a ReLU alone, the quotient where it is needed."""
    problem, spec, forward = arguments(backend, **settings)
    output, quotient, norm = FORWARD(*forward)
    saved = (output if problem.relu else None, quotient, norm)
    return (problem.grad, *problem.operands, *saved, *spec, list(mask), backend)


def metadata(tensors):
    return [(tuple(t.shape), t.dtype, problems.strides(t)) for t in tensors]


def fake_metadata(operator, args):
    with FakeTensorMode() as mode:
        return metadata(operator(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args)))


def formats_of(case):
    return FORMATS if CASES[case].get("rank", 2) > 1 else FORMATS[:1]


ALL = [(case, formats) for case in CASES for formats in formats_of(case)]


@pytest.mark.parametrize(("case", "formats"), ALL, ids=str)
@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
def test_forward_passes_opcheck(kernels, case, formats, relu):
    *_, args = arguments(kernels, **CASES[case], formats=formats, relu=relu)
    opcheck(FORWARD.default, args, test_utils=CHECKS)


@pytest.mark.parametrize(("case", "formats"), ALL, ids=str)
@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
def test_backward_passes_opcheck(kernels, case, formats, relu):
    args = backward_arguments(kernels, [True] * 4, **CASES[case], formats=formats, relu=relu)
    opcheck(BACKWARD.default, args, test_utils=CHECKS)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
def test_both_survive_being_traced_with_dynamic_shapes(kernels, case, relu):
    settings = {**CASES[case], "formats": formats_of(case)[-1], "relu": relu}
    opcheck(FORWARD.default, arguments(kernels, **settings)[-1], test_utils=TRACED)
    opcheck(BACKWARD.default, backward_arguments(kernels, [True] * 4, **settings), test_utils=TRACED)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_forward_passes_opcheck_in_every_dtype(kernels, bias, save, dtype):
    *_, args = arguments(kernels, save=save, bias=bias, dtype=dtype)
    opcheck(FORWARD.default, args, test_utils=CHECKS)


@pytest.mark.parametrize("mask", list(itertools.product([False, True], repeat=4)), ids=str)
def test_backward_gives_empty_tensors_for_what_the_mask_leaves_out(kernels, mask):
    args = backward_arguments(kernels, mask, padding=1, groups=2, dtype=torch.float64)
    opcheck(BACKWARD.default, args, test_utils=CHECKS)
    results = BACKWARD(*args)
    expected = BACKWARD(*args[:-2], [True] * 4, kernels)
    for asked, result, full in zip(mask, results, expected, strict=True):
        torch.testing.assert_close(result, full if asked else result.new_empty(0))


@pytest.mark.parametrize("name", problems.STRIDED)
@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
def test_fakes_of_strided_inputs_have_the_metadata_of_real_ones(kernels, relu, name):
    problem, spec, args = arguments(kernels, batch=3, channels=(4, 6), size=(7, 6), padding=1, relu=relu)
    x = problems.STRIDED[name]()
    args = (x, *args[1:])
    output, quotient, norm = FORWARD(*args)
    assert fake_metadata(FORWARD, args) == metadata((output, quotient, norm))
    saved = (output if relu else None, quotient, norm)
    args = (problem.grad, x, *problem.operands[1:], *saved, *spec, [True] * 4, kernels)
    expected = metadata(BACKWARD(*args))
    assert fake_metadata(BACKWARD, args) == expected


@pytest.mark.parametrize(("rank", "axes"), [(1, (0, 2, 1)), (1, (1, 0, 2)), (3, (0, 4, 1, 2, 3)), (0, (1, 0))], ids=str)
def test_fakes_of_permuted_inputs_have_the_metadata_of_real_ones(kernels, rank, axes):
    problem, spec, args = arguments(kernels, rank=rank, size=6)
    order = torch.argsort(torch.tensor(axes)).tolist()
    x = problem.input.permute(axes).contiguous().permute(order)
    args = (x, *args[1:])
    real = FORWARD(*args)
    assert fake_metadata(FORWARD, args) == metadata(real)
    args = (problem.grad, x, *problem.operands[1:], None, *real[1:], *spec, [True] * 4, kernels)
    expected = metadata(BACKWARD(*args))
    assert fake_metadata(BACKWARD, args) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_the_norm_is_at_least_fp32_and_alpha_keeps_its_dtype(kernels, dtype):
    problem, spec, args = arguments(kernels, dtype=dtype)
    alpha = torch.tensor(1.5, dtype=torch.float32)
    args = (*args[:3], alpha, *args[4:])
    output, quotient, norm = FORWARD(*args)
    assert norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert output.dtype == quotient.dtype == dtype
    args = (problem.grad, *args[:4], None, quotient, norm, *spec, [True] * 4, kernels)
    results = BACKWARD(*args)
    assert [t.dtype for t in results] == [dtype, dtype, torch.float32, dtype]
    assert fake_metadata(BACKWARD, args) == metadata(results)


class Recorded(TorchDispatchMode):
    """The names of the operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.add(operator.name())
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_a_mode_sees_the_operators_and_the_same_results(kernels, grad):
    problem, *_ = arguments(kernels, padding=1)
    alone = problem.run(kernels)
    with Recorded() as mode, torch.set_grad_enabled(grad):
        if grad:
            seen = problem.run(kernels)
        else:
            seen = {"output": problems.PUBLIC[2](*problem.operands, padding=1, backend=kernels)}
    assert all(torch.equal(value, alone[name]) for name, value in seen.items())
    assert "ccn::compact_conv" in mode.names
    assert grad == ("ccn::compact_conv_backward" in mode.names)


def test_fake_operands_outside_their_mode_stay_fake(kernels):
    problem, *_ = arguments(kernels)
    with FakeTensorMode() as mode:
        operands = [mode.from_tensor(operand) for operand in problem.operands]
    spec = ConvSpec((1, 1), (0, 0), (1, 1), 1, 0.01, False)
    assert all(type(result) is FakeTensor for result in ops.compact_conv(*operands, spec, True, kernels))


def test_a_tensor_that_outlived_its_transform(kernels):
    """functorch's wrappers look like plain tensors, and may be kept by whoever called."""
    problem, *_ = arguments(kernels, rank=0)
    kept = []
    torch.func.grad(lambda x: kept.append(x) or x.sum())(problem.input)
    expected = problems.PUBLIC[0](*problem.operands, backend=kernels)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            weight = problem.weight.clone().requires_grad_()
            y = problems.PUBLIC[0](kept[0], weight, *problem.operands[2:], backend=kernels)
        assert torch.equal(y.detach(), expected)
        assert y.requires_grad == grad


def test_the_python_wrappers_call_the_operators(kernels):
    problem, flat, args = arguments(kernels, padding=1)
    spec = ConvSpec(*(tuple(entry) if isinstance(entry, list) else entry for entry in flat))
    found = ops.compact_conv(*problem.operands, spec, True, kernels)
    expected = FORWARD(*args)
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
    saved = (None, *expected[1:])
    found = ops.compact_conv_backward(problem.grad, *problem.operands, *saved, spec, [True] * 4, kernels)
    expected = BACKWARD(problem.grad, *problem.operands, *saved, *flat, [True] * 4, kernels)
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


@pytest.mark.parametrize("rank", [0, 2])
def test_operators_do_not_hear_of_autocast(kernels, rank):
    """In an exported program they stand alone; what they are given is in its final dtype."""
    settings = {"rank": rank, **({} if rank == 0 else {"stride": 2})}
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            found.append((*FORWARD(*arguments(kernels, **settings)[-1]),
                          *BACKWARD(*backward_arguments(kernels, [True] * 4, **settings))))  # fmt: skip
    for plain, cast in zip(*found, strict=True):
        torch.testing.assert_close(cast, plain, rtol=0, atol=0)
