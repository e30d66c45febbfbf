"""What only a GPU can show of a backend: large tensors, TF32, streams, graphs, devices, and threads."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import mixed_precision
import problems
import pytest
import torch
import torch.nn.functional as F
from gpu_problems import EXACT, NARROW, TF32_ERROR, WIDE, assert_accurate, make, need_memory, parts, two_branches
from problems import assert_same_bits
from torch import nn

from ccn_kernels import CompactConv2d, CompactLinear
from ccn_kernels.functional import compact_conv2d
from ccn_kernels.workloads import LAYERS, Layer

if not torch.cuda.is_available():
    pytest.skip("it needs a CUDA GPU", allow_module_level=True)

SMALL = Layer("small", 8, 64, 64, 9)


@pytest.mark.parametrize(
    ("layer", "dtype"),
    [(layer, torch.bfloat16) for layer in LAYERS] + [(layer, torch.float16) for layer in LAYERS[::2]],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_layers(layer, dtype, backend):
    """Of the networks that the package is measured on: right, and the same bits every time."""
    problem = make(layer, dtype)
    results = problem.run(backend)
    assert_accurate(problem, results)
    for _ in range(2):
        assert_same_bits(results, problem.run(backend))


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_layers_in_tf32_where_pytorch_allows_it(layer, backend):
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "tf32"
    problem = make(layer, torch.float32, batch=min(layer.batch, 32))
    results = problem.run(backend)
    assert_accurate(problem, results, TF32_ERROR)
    assert_same_bits(results, problem.run(backend))


@pytest.mark.parametrize("layer", [WIDE, LAYERS[0]], ids=lambda layer: layer.name)
def test_fp32_is_rounded_to_tf32_by_permission_alone(layer, backend):
    problem, errors = make(layer, torch.float32), {}
    expected = two_branches(problem, torch.float64)["output"]
    for precision in ("ieee", "tf32"):
        torch.backends.cudnn.conv.fp32_precision = precision
        errors[precision] = problems.relative_error(problem.run(backend)["output"], expected)
    assert errors["ieee"] < EXACT
    assert errors["tf32"] < TF32_ERROR
    assert (errors["tf32"] > EXACT) == (torch.cuda.get_device_capability() >= (8, 0))  # older ones know no TF32


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_more_than_2_to_the_31_elements(last, backend):
    """Slices of it, and sums over all of it, are what they are image by image."""
    need_memory(56)
    format = torch.channels_last if last else torch.contiguous_format
    x = torch.empty(130, 64, 512, 512, dtype=torch.bfloat16, device="cuda", memory_format=format).normal_()
    assert x.numel() > 2**31
    x[0] = 0
    w, b = torch.randn(64, 64, 3, 3, device="cuda").bfloat16(), torch.randn(64, device="cuda").bfloat16()
    whole = problems.Problem(
        x, w, b, torch.tensor(1.7, device="cuda").bfloat16(), torch.empty_like(x), geometry={"padding": 1}
    )
    whole.grad.normal_()
    results = whole.run(backend)
    sums = {"weight": 0, "bias": 0, "alpha": 0}
    for first in range(0, 130, 5):
        images = slice(first, first + 5)
        few = dataclasses.replace(whole, input=x[images], grad=whole.grad[images])
        expected = two_branches(few, torch.float64)
        for name in sums:
            sums[name] = sums[name] + expected[name]
        if first in (0, 60, 125):
            slices = {name: results[name][images] for name in ("output", "input")}
            found, naive = parts(slices), two_branches(few, torch.bfloat16)
            for name in ("output", "input", "input at zeros"):
                error, yardstick = (problems.relative_error(t[name], expected[name]) for t in (found, naive))
                assert error <= 2 * yardstick + 1e-6, (name, first)
    for name in ("weight", "bias"):
        assert problems.relative_error(results[name], sums[name]) < torch.finfo(torch.bfloat16).eps, name
    terms = w.double().norm() * sums["weight"].norm() / 1.7
    assert (results["alpha"].double() - sums["alpha"]).abs() < torch.finfo(torch.bfloat16).eps * terms


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_views_that_reach_beyond_32_bits(last, backend):
    need_memory(20)
    format = torch.channels_last if last else torch.contiguous_format
    whole = torch.zeros(4, 16, 2**13, 2**13, dtype=torch.bfloat16, device="cuda").to(memory_format=format)
    view = whole[:, :, :8]
    assert view.stride(0) * 3 > 2**31 > view.stride(0)
    problem = problems.make(2, (16, 16), (8, 2**13), batch=4, padding=1, dtype=torch.bfloat16)
    view.copy_(problem.input)
    here = problems.placed(problem, "cuda")
    results = dataclasses.replace(here, input=view).run(backend)
    here.input = view.contiguous(memory_format=format)
    assert_same_bits(results, here.run(backend))
    assert_accurate(here, results)


def test_a_side_stream(backend):
    """The input is still zero when the call is made, and there in time for a kernel on the same stream."""
    problem = make(SMALL, torch.bfloat16)
    expected, real = problem.run(backend), problem.input.clone()
    problem.input.zero_()
    factor = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(40):
            factor = factor @ factor
        problem.input.copy_(real)
        results = problem.run(backend)
    stream.synchronize()
    assert_same_bits(results, expected)


@pytest.mark.parametrize("index", range(torch.cuda.device_count()))
def test_every_device_while_the_first_is_current(index, backend):
    problem = problems.make(2, (16, 32), padding=1, formats=(True, True), dtype=torch.bfloat16)
    there = problems.placed(problem, torch.device("cuda", index))
    with torch.cuda.device(0):
        results = there.run(backend)
        assert torch.cuda.current_device() == 0
    assert all(value.device.index == index for value in results.values())
    problems.assert_accurate(problem, {name: value.cpu() for name, value in results.items()})


def network(dtype, backend):
    torch.manual_seed(0)
    model = nn.Sequential(
        CompactConv2d(3, 32, 3, padding=1, alpha=4.0, activation="relu", backend=backend),
        CompactConv2d(32, 64, 3, stride=2, padding=1, alpha=4.0, backend=backend),
        nn.ReLU(inplace=True),
        CompactConv2d(64, 64, 3, padding=1, groups=2, alpha=4.0, activation="relu", backend=backend),
        nn.Flatten(),
        CompactLinear(64 * 8 * 8, 10, alpha=4.0, backend=backend),
    )
    return model.to("cuda", dtype, memory_format=torch.channels_last)


def training_step(model, optimizer, x, target):
    optimizer.zero_grad(set_to_none=True)
    loss = F.cross_entropy(model(x).float(), target)
    loss.backward()
    optimizer.step()
    return loss


@pytest.mark.parametrize("dtype", [*NARROW, torch.float32], ids=str)
def test_a_training_step_as_a_cuda_graph(dtype, backend):
    """Replayed over several batches, it trains as the steps do that are called one by one."""
    model = network(dtype, backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    batches = [torch.randn(16, 3, 16, 16, device="cuda").to(dtype) for _ in range(3)]
    target = torch.randint(10, (16,), device="cuda")
    x = batches[0].clone(memory_format=torch.channels_last)
    start = [parameter.detach().clone() for parameter in model.parameters()]

    def restart():
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), start, strict=True):
                parameter.copy_(value)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles, and makes what libraries make when they are first called
        for _ in range(3):
            training_step(model, optimizer, x, target)
    torch.cuda.current_stream().wait_stream(stream)

    losses = {}
    restart()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = training_step(model, optimizer, x, target)
    losses["graph"] = []
    for batch in batches:
        x.copy_(batch)
        graph.replay()
        losses["graph"].append(loss.item())
    replayed = [parameter.detach().clone() for parameter in model.parameters()]

    restart()
    losses["eager"] = []
    for batch in batches:
        x.copy_(batch)
        losses["eager"].append(training_step(model, optimizer, x, target).item())
    torch.testing.assert_close(losses["graph"], losses["eager"], rtol=1e-2, atol=0)
    for one, two in zip(replayed, model.parameters(), strict=True):
        torch.testing.assert_close(one, two)
    assert not any(torch.equal(replayed[index], start[index]) for index in (0, 3, 6))  # weights


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_training_under_autocast_with_a_gradient_scaler(dtype, backend):
    model = network(torch.float32, backend)
    x, target = torch.randn(16, 3, 16, 16, device="cuda"), torch.randint(10, (16,), device="cuda")
    losses = mixed_precision.train(model, x, target, dtype)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("dtype", [*NARROW, torch.float32], ids=str)
def test_a_training_step_never_waits_for_the_device(dtype, backend):
    model = network(dtype, backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x, target = torch.randn(16, 3, 16, 16, device="cuda").to(dtype), torch.randint(10, (16,), device="cuda")
    training_step(model, optimizer, x, target)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = training_step(model, optimizer, x, target)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


def test_calls_from_several_threads_do_not_disturb_one_another(backend):
    many = [make(Layer("of many", 4, 16, 16 + 8 * i, 20), torch.bfloat16) for i in range(8)]
    alone = [problem.run(backend) for problem in many]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda problem: problem.run(backend), many))
    for one, two in zip(alone, together, strict=True):
        assert_same_bits(one, two)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_one_image_expanded_over_the_batch(dtype, backend):
    """Its images lie at stride 0, which Triton's descriptors may not be able to say."""
    x, w = torch.randn(1, 64, 14, 14, device="cuda", dtype=dtype), torch.randn(64, 64, 3, 3, device="cuda", dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last).expand(8, 64, 14, 14)
    assert x.stride(0) == 0
    dense = x.contiguous(memory_format=torch.channels_last)
    one, two = (compact_conv2d(images, w, padding=1, backend=backend) for images in (x, dense))
    assert torch.equal(one, two)
