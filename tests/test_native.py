"""The native operators called as a C++ program would: without Python's checks, backends or autograd in between."""

import subprocess
import sys
from pathlib import Path

import oracle
import problems
import pytest
import torch
from torch.torch_version import TorchVersion

from ccn_kernels.backends import extension


@pytest.fixture(scope="module", autouse=True)
def library():
    assert extension.missing("cpu") is None


def forward(x, w, b=None, alpha=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, relu=False, save=True):
    alpha = torch.tensor(1.5, dtype=x.dtype) if alpha is None else alpha
    axes = (list(stride), list(padding), list(dilation))
    return torch.ops.ccn_native.compact_conv(x, w, b, alpha, *axes, groups, 0.01, relu, save)


def backward(problem, results, relu, mask=(True,) * 4, **changes):
    output, quotient, norm = results
    saved = {"output": output if relu else None, "quotient": quotient, "norm": norm, **changes}
    axes = [[1] * problem.rank, [0] * problem.rank, [1] * problem.rank]
    operands = (problem.grad, *problem.operands, *saved.values())
    return torch.ops.ccn_native.compact_conv_backward(*operands, *axes, 1, 0.01, list(mask))


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_results_are_those_of_the_oracle(rank, relu, dtype):
    problem = problems.make(rank, size=5, dtype=dtype, relu=relu)
    axes = [(1,) * rank, (0,) * rank, (1,) * rank]
    results = forward(*problem.operands, *axes, relu=relu)
    output, quotient, norm = results
    dx, dw, dalpha, db = backward(problem, results, relu)
    named = {"output": output, "input": dx, "weight": dw, "alpha": dalpha, "bias": db}
    problems.assert_accurate(problem, named)
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    expected = oracle.compact_conv(problem.input, problem.weight)
    torch.testing.assert_close(quotient.double(), expected, **tolerance)
    torch.testing.assert_close(
        norm.double(), oracle.patch_norms(problem.input, problem.weight.shape[2:]), rtol=1e-6, atol=1e-6
    )
    assert norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_the_quotient_is_empty_unless_asked_for():
    problem = problems.make(2)
    output, quotient, norm = forward(*problem.operands, save=False)
    expected = forward(*problem.operands, save=True)
    assert quotient.numel() == 0
    assert torch.equal(output, expected[0])
    assert torch.equal(norm, expected[2])


def recorded(tensors):
    """Whether autograd knows how these came about: PyTorch's own note that it does not is no record."""
    return any(t.grad_fn is not None and "NotImplemented" not in t.grad_fn.name() for t in tensors)


def test_results_stay_out_of_autograd():
    """Recorded by ATen inside as well as by the Function outside, a graph would keep memory that nobody frees."""
    problem = problems.make(2)
    leaves = [t.requires_grad_() for t in problem.operands]
    results = forward(*leaves)
    assert not recorded(results)
    assert torch.is_grad_enabled()
    assert not recorded(backward(problem, [t.detach() for t in results], relu=False))
    assert torch.is_grad_enabled()
    with torch.no_grad():
        forward(*leaves)
        assert not torch.is_grad_enabled()


def test_the_grad_mode_is_put_back_after_an_error():
    with pytest.raises(RuntimeError):
        forward(torch.zeros(1, 3, 4, 4), torch.zeros(2, 4, 3, 3))
    assert torch.is_grad_enabled()


X, W = torch.zeros(2, 4, 8, 8), torch.zeros(6, 4, 3, 3)
FORWARD = {
    "the input's rank": ((X[0], W), {}, "input must have 4 dimensions"),
    "the weight's rank": ((X, W[0]), {}, "weight must have 4 dimensions"),
    "channels": ((X[:, :3], W), {}, "input must have 4 channels"),
    "groups that do not divide": ((X, W[:5, :2]), {"groups": 2}, "groups must divide"),
    "groups of 0": ((X, W), {"groups": 0}, "groups"),
    "a stride of 0": ((X, W), {"stride": (0, 1)}, "stride must be positive"),
    "a negative stride": ((X, W), {"stride": (1, -1)}, "stride must be positive"),
    "a negative padding": ((X, W), {"padding": (-1, 0)}, "padding must not be negative"),
    "a dilation of 0": ((X, W), {"dilation": (1, 0)}, "dilation must be positive"),
    "too few paddings": ((X, W), {"padding": (0,)}, "as many entries"),
    "too many dilations": ((X, W), {"dilation": (1, 1, 1)}, "as many entries"),
    "four axes": ((X, W), {"stride": (1,) * 4, "padding": (0,) * 4, "dilation": (1,) * 4}, "at most 3"),
    "a kernel too large": ((X[..., :2], W), {}, "kernel spans 3"),
    "two dtypes": ((X, W.double()), {}, "same dtype"),
    "a kernel of no extent": ((X, W[..., :0]), {}, "weight"),
    "a bias too short": ((X, W, torch.zeros(5)), {}, "bias"),
    "a bias of rank 2": ((X, W, torch.zeros(6, 1)), {}, "bias"),
    "an alpha of two": ((X, W, None, torch.ones(2)), {}, "alpha"),
    "an integer input": ((X.long(), W.long()), {}, "input"),
}
# The problem's own shapes are [3, 4, 8, 8] for the input, [3, 6, 6, 6] for the output, [3, 1, 6, 6] for the norm.
BACKWARD = {
    "a short mask": ({"mask": (True,) * 3}, "output_mask must have 4"),
    "no quotient": ({"quotient": None}, "quotient must be given"),
    "a small norm": ({"norm": torch.zeros(3, 1, 5, 6)}, "norm"),
    "a norm of another dtype": ({"norm": torch.zeros(3, 1, 6, 6, dtype=torch.float64)}, "norm"),
    "a small quotient": ({"quotient": torch.zeros(3, 6, 5, 5)}, "quotient"),
    "a small gradient": ({"grad": torch.zeros(3, 6, 6, 5)}, "grad"),
    "a gradient of fewer images": ({"grad": torch.zeros(2, 6, 6, 6)}, "grad"),
}
MESSAGES = {name: case[-1] for name, case in {**FORWARD, **BACKWARD}.items()}


def attempt(name):
    """Makes a bad call. It ought to raise; what it does to memory where it does not, no test process should suffer."""
    if name in FORWARD:
        args, settings, _ = FORWARD[name]
        return forward(*args, **settings)
    changes, _ = BACKWARD[name]
    problem = problems.make(2)
    results = forward(*problem.operands)
    problem.grad = changes.get("grad", problem.grad)
    return backward(problem, results, relu=False, **{key: value for key, value in changes.items() if key != "grad"})


def attempt_all():
    """Runs in a process of its own, and prints a line for each call: its name, and the error if there was one."""
    assert extension.missing("cpu") is None
    for name in MESSAGES:
        try:
            attempt(name)
            outcome = ""
        except RuntimeError as error:
            outcome = str(error).splitlines()[0]
        print(name, outcome, sep="\t", flush=True)


@pytest.fixture(scope="module")
def outcomes():
    script = "import test_native; test_native.attempt_all()"
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent, capture_output=True, text=True)
    return dict(line.split("\t") for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", MESSAGES)
def test_bad_arguments_raise_and_say_which(outcomes, name):
    """A C++ caller has no other guard: a tensor too small would be read, or written, past its end."""
    assert name in outcomes, "the process died before it came to this call"
    assert MESSAGES[name] in outcomes[name]


@pytest.mark.parametrize("mask", [(True, False, False, False), (False, True, False, False), (False, False, True, True)])
def test_only_what_the_mask_asks_for_is_computed(mask):
    problem = problems.make(2, dtype=torch.float64)
    results = forward(*problem.operands)
    full, part = backward(problem, results, False), backward(problem, results, False, mask)
    for asked, one, two in zip(mask, part, full, strict=True):
        torch.testing.assert_close(one, two if asked else one.new_empty(0))


def test_a_lack_of_memory_is_told_as_pytorch_tells_it():
    images = torch.zeros(()).expand(1 << 41, 1, 1, 1)  # more than there are addresses for
    told = torch.__version__ >= TorchVersion("2.13")  # to libraries; before, PyTorch prints it
    message = "can't allocate memory: you tried to" if told else "API call failed"
    with pytest.raises(RuntimeError, match=message) as error:
        forward(images, torch.ones(64, 1, 1, 1))
    assert ("API call failed" in str(error.value)) != told
