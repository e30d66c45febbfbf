"""Problems that are made on a GPU, and judged there: by the two-branch module, in fp64 and in their own dtype."""

import problems
import pytest
import torch

from ccn_kernels.workloads import Layer

TF32_ERROR, EXACT = 2e-3, 3e-5  # relative: ten bits of either factor, or all of fp32's
NARROW = [torch.bfloat16, torch.float16]
WIDE = Layer("wide", 32, 256, 256, 14)
KINDS = (  # of layers, as Triton's kernels tell them apart
    Layer("descriptors", 256, 48, 80, 10),
    Layer("persistent", 256, 64, 128, 16),
    Layer("pointers", 256, 3, 48, 10),
    Layer("odd", 256, 63, 65, 7),
    Layer("strided", 256, 48, 80, 10, stride=2),
    Layer("contiguous", 256, 48, 80, 10, channels_last=False),
    Layer("depthwise", 256, 48, 48, 10, groups=48),
    Layer("linear", 256, 400, 80, kernel=1, padding=0, rank=0),
)
CLASSES = ((256, 255, 200, 129, 1000), (128, 127, 65), (16, 15, 5))  # batches that share their kernels


def make(layer, dtype, batch=None, relu=False):
    """A problem on the GPU whose first image is all zeros."""
    layer = layer if batch is None else layer._replace(batch=batch)
    x, w, b, _ = layer.operands(dtype, "cuda")
    x[0] = 0
    geometry = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups} if layer.rank else {}
    alpha = torch.tensor(1.7, dtype=dtype, device="cuda")
    problem = problems.Problem(x, w, b, alpha, w.new_empty(0), 0.01, relu, geometry)
    problem.grad = 0.1 * torch.randn_like(problems.CONVS[layer.rank](x, w, **geometry))  # g / delta fits fp16
    return problem


def two_branches(problem, dtype):
    """The two-branch module in a dtype, by name."""

    def call(*operands):
        return problems.two_branch(*operands, problem.delta, problem.relu, **problem.geometry)

    results = problems.differentiate(call, [t.to(dtype) for t in problem.operands], problem.grad.to(dtype))
    return parts(results)


def parts(results):
    """Where all is zero the input's gradient is a hundred times larger: measured together, it would hide the rest."""
    results = {name: value.to("cuda") for name, value in results.items()}
    return {**results, "input": results["input"][1:], "input at zeros": results["input"][:1]}


def assert_accurate(problem, results, tolerance=None):
    """Norm-wise, twice the error of PyTorch's own operators in this dtype, or within ``tolerance``."""
    dtype = problem.input.dtype
    results, expected = parts(results), two_branches(problem, torch.float64)
    naive = None if tolerance else two_branches(problem, dtype)
    for name, want in expected.items():
        assert results[name].dtype == dtype, name
        if name == "alpha":  # one number of terms that cancel
            terms = problem.weight.double().norm() * expected["weight"].norm() / problem.alpha.double()
            assert (results[name].double() - want).abs() <= (tolerance or torch.finfo(dtype).eps) * terms
            continue
        error = problems.relative_error(results[name], want)
        allowed = tolerance or 2 * problems.relative_error(naive[name], want) + 1e-6
        assert error <= allowed, f"{name}: relative error {error:.3g}, allowed {allowed:.3g}"


def need_memory(gigabytes):
    free = torch.cuda.mem_get_info()[0]
    if free < gigabytes * 2**30:
        pytest.skip(f"it needs {gigabytes} GiB of GPU memory, {free / 2**30:.0f} are free")
