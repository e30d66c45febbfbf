"""The operators `ccn::compact_conv` and `ccn::compact_conv_backward` as PyTorch's compiler relies on them."""

import problems
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.library import opcheck

from ccn_kernels import ops
from ccn_kernels.spec import ConvSpec

CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")  # no formula: autograd.py has it

CASES = {
    "linear": {"rank": 0},
    "1-d": {"rank": 1, "stride": 2, "padding": 1},
    "2-d": {"padding": 1},
    "2-d-grouped": {"groups": 2, "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    "2-d-pointwise": {"kernel": 1},
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
    output, quotient, norm = torch.ops.ccn.compact_conv(*forward)
    saved = (output if problem.relu else None, quotient, norm)
    return (problem.grad, *problem.operands, *saved, *spec, list(mask), backend)


def metadata(tensors):
    """Shape, dtype, and the strides of axes that have more than one entry."""
    found = []
    for t in tensors:
        strides = [s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1 and t.numel()]
        found.append((tuple(t.shape), t.dtype, strides))
    return found


def fake_metadata(operator, args):
    with FakeTensorMode() as mode:
        return metadata(operator(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args)))


def formats_of(case):
    return FORMATS if CASES[case].get("rank", 2) > 1 else FORMATS[:1]


ALL = [(case, formats) for case in CASES for formats in formats_of(case)]


@pytest.mark.parametrize(("case", "formats"), ALL, ids=str)
@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
def test_forward_passes_opcheck(backend, case, formats, relu):
    *_, args = arguments(backend, **CASES[case], formats=formats, relu=relu)
    opcheck(torch.ops.ccn.compact_conv.default, args, test_utils=CHECKS)


@pytest.mark.parametrize(("case", "formats"), ALL, ids=str)
@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
def test_backward_passes_opcheck(cpu_only, case, formats, relu):
    args = backward_arguments(cpu_only, [True] * 4, **CASES[case], formats=formats, relu=relu)
    opcheck(torch.ops.ccn.compact_conv_backward.default, args, test_utils=CHECKS)
