"""What the kernels must not do at the edges of types, of shapes, and of what a patch sees."""

import problems
import pytest
import torch
from emulator import emulated

from ccn_kernels.functional import compact_conv2d

DEVICE = emulated.device()
NHWC = (True, True)


@pytest.mark.parametrize("value", [1e5, 1.002])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_alpha_keeps_its_own_precision(value, dtype):
    """1e5 is beyond fp16, and 1.002 is 1 in bf16."""
    problem = problems.make(channels=(16, 24), padding=1, dtype=dtype, formats=NHWC, bias=False)
    problem.input, problem.weight = problem.input / 8, problem.weight / 64
    problem.alpha = torch.tensor(value)
    problem.grad = problem.grad / 1024
    results, expected = problems.run_on(problem, DEVICE, "cuda"), problem.oracle()
    assert results["alpha"].dtype == torch.float32
    for name in ("output", "input", "weight"):
        assert problems.relative_error(results[name], expected[name]) < torch.finfo(dtype).eps, name
    terms = problem.weight.double().norm() * expected["weight"].norm() / value
    assert (results["alpha"].double() - expected["alpha"]).abs() < torch.finfo(dtype).eps * terms


def test_an_infinite_gradient_leaves_other_images_alone():
    """The largest |e| decides what fp16 is scaled by; an infinite one must not."""
    x = 1e-3 * torch.randn(2, 16, 6, 6, device=DEVICE).half()
    x.requires_grad_()
    output = compact_conv2d(x, 1e-3 * torch.randn(16, 16, 3, 3, device=DEVICE).half(), backend="cuda")
    grad = torch.full_like(output, 3000)
    grad[0, 0, 0, 0] = torch.inf
    (found,) = torch.autograd.grad(output, x, grad)
    assert found[1].isfinite().all()
    assert not found[0].isfinite().all()


@pytest.mark.parametrize(("kernel", "stride"), [(1, 2), (2, 3)])
def test_what_no_patch_sees_may_be_infinite(kernel, stride):
    x = torch.randn(1, 16, 8, 8, device=DEVICE)
    x[0, 3, 2, 2] = torch.inf if kernel == 2 else 0
    x[0, 3, 1, 1] = 0 if kernel == 2 else torch.inf
    x.requires_grad_()
    output = compact_conv2d(x, torch.randn(8, 16, kernel, kernel, device=DEVICE), stride=stride, backend="cuda")
    (grad,) = torch.autograd.grad(output.sum(), x)
    assert output.isfinite().all()
    assert grad.isfinite().all()


def test_an_axis_without_pixels_is_refused():
    with pytest.raises(RuntimeError, match="input"):
        compact_conv2d(
            torch.zeros(1, 16, 0, 5, device=DEVICE), torch.zeros(8, 16, 3, 3, device=DEVICE), padding=2, backend="cuda"
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("needs_weight", [True, False])
def test_few_pixels_of_many_channels(dtype, needs_weight):
    """Their channels are shared among blocks."""
    problem = problems.make(rank=0, channels=(40, 700), batch=3, dtype=dtype)
    results, expected = problems.run_on(problem, DEVICE, "cuda"), problem.oracle()
    problems.assert_accurate(problem, results)
    if not needs_weight:
        here = problems.placed(problem, DEVICE)
        alpha = here.alpha.clone().requires_grad_()
        output = problems.functional.compact_linear(here.input, here.weight, here.bias, alpha, backend="cuda")
        (found,) = torch.autograd.grad(output, alpha, here.grad)
        scale = problem.magnitudes(1)["alpha"]
        assert (found.cpu().double() - expected["alpha"]).abs() <= torch.finfo(dtype).eps * scale


def test_a_copy_on_write_input_is_not_copied():
    x = torch.randn(2, 16, 6, 6, device=DEVICE)
    lazy = torch._lazy_clone(x)
    compact_conv2d(lazy, torch.randn(8, 16, 3, 3, device=DEVICE), backend="cuda")
    assert torch._C._is_cow_tensor(lazy)


def test_an_alpha_that_needs_no_gradient_is_described_as_it_is():
    """The compiler trusts what the operators' fakes say of every result, of an empty one too."""
    problem = problems.placed(problems.make(channels=(16, 24), dtype=torch.float16), DEVICE)
    x, weight, bias, _ = problem.operands
    alpha, axes = torch.tensor(1.7, device=DEVICE), [[1, 1], [0, 0], [1, 1]]
    output, quotient, norm = torch.ops.ccn.compact_conv(x, weight, bias, alpha, *axes, 1, 0.01, False, True, "cuda")
    saved = (problem.grad, x, weight, bias, alpha, None, quotient, norm)
    args = (*saved, *axes, 1, 0.01, False, [True, True, False, True], "cuda")
    torch.library.opcheck(torch.ops.ccn.compact_conv_backward.default, args, test_utils="test_faketensor")
    assert output.shape == problem.grad.shape
