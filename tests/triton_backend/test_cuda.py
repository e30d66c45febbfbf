"""What only a GPU can show: large tiles and tensors, TF32, streams, graphs, devices, and what is compiled when."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import calls
import problems
import pytest
import torch
import torch.nn.functional as F
import triton
from torch import nn

from ccn_kernels import CompactConv2d, CompactLinear
from ccn_kernels.backends.triton import config, device
from ccn_kernels.backends.triton.config import Tile
from ccn_kernels.backends.triton.launch import Problem
from ccn_kernels.functional import compact_conv2d
from ccn_kernels.workloads import LAYERS, Layer

if calls.INTERPRETED or not torch.cuda.is_available():
    pytest.skip("it needs a CUDA GPU, and kernels that are compiled for it", allow_module_level=True)

TF32_ERROR, EXACT = 2e-3, 3e-5  # relative: ten bits of either factor, or all of fp32's
NARROW = [torch.bfloat16, torch.float16]
WIDE, IMAGES = Layer("wide", 32, 256, 256, 14), Layer("whole images", 64, 256, 512, 4)
SMALL = Layer("small", 8, 64, 64, 9)


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


def assert_same_bits(one, two):
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def need_memory(gigabytes):
    free = torch.cuda.mem_get_info()[0]
    if free < gigabytes * 2**30:
        pytest.skip(f"it needs {gigabytes} GiB of GPU memory, {free / 2**30:.0f} are free")


@pytest.mark.parametrize(
    ("layer", "dtype"),
    [(layer, torch.bfloat16) for layer in LAYERS] + [(layer, torch.float16) for layer in LAYERS[::2]],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_layers_by_the_tiles_chosen_for_them(layer, dtype):
    """Of the networks that the package is measured on: right, and the same bits every time."""
    problem = make(layer, dtype)
    results = problem.run("triton")
    assert_accurate(problem, results)
    for _ in range(2):
        assert_same_bits(results, problem.run("triton"))


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_layers_in_tf32_where_pytorch_allows_it(layer):
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "tf32"
    problem = make(layer, torch.float32, batch=min(layer.batch, 32))
    results = problem.run("triton")
    assert_accurate(problem, results, TF32_ERROR)
    assert_same_bits(results, problem.run("triton"))


@pytest.mark.parametrize("layer", [WIDE, LAYERS[0]], ids=lambda layer: layer.name)
def test_fp32_is_rounded_to_tf32_by_permission_alone(layer):
    problem, errors = make(layer, torch.float32), {}
    expected = two_branches(problem, torch.float64)["output"]
    for precision in ("ieee", "tf32"):
        torch.backends.cudnn.conv.fp32_precision = precision
        errors[precision] = problems.relative_error(problem.run("triton")["output"], expected)
    assert errors["ieee"] < EXACT
    assert errors["tf32"] < TF32_ERROR
    assert (errors["tf32"] > EXACT) == (torch.cuda.get_device_capability() >= (8, 0))  # older ones know no TF32


@pytest.mark.parametrize("dtype", [*NARROW, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["forward", "dgrad", "wgrad"])
@pytest.mark.parametrize("layer", [WIDE, IMAGES], ids=lambda layer: layer.name)
def test_tiles_of_eight_warps(layer, kind, dtype):
    """Every one that may be chosen, over several draws, twice each: a race shows in some."""
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    depth = 32 if dtype == torch.float32 else 64
    if kind == "wgrad":
        tiles = [Tile("descriptor", 64, outputs, 128, 8, 3, splits) for outputs in (128, 256) for splits in (0, 2)]
        tiles.append(Tile("gather", 64, 128, 64, 8, 3, 2))
    else:
        sizes = [(128, 256, depth, 8, 3), (128, 128, depth, 8, 3), (256, 64, depth, 8, 4)]
        ways = [(1, "loop"), (2, "loop")] if kind == "forward" else [(1, "loop")]
        ways += [(1, squares) for squares in ("rows", "images", "plane")] if kind == "forward" else []
        tiles = [Tile("descriptor", *size, *way) for size in sizes for way in ways]
        tiles.append(Tile("gather", 128, 128, 32, 8, 3))
    call = calls.resolved(make(layer, dtype))
    request = Problem(call.input, call.weight, call.spec, device(None)).request(kind)
    tiles = [tile for tile in tiles if config.can_run(tile, request, device(None)) is None]
    has_descriptors = device(None).capability >= 90 and not (kind == "wgrad" and dtype == torch.float32)
    assert ("descriptor" in {tile.kernel for tile in tiles}) == has_descriptors
    for seed in range(3):
        torch.manual_seed(seed)
        problem = make(layer, dtype)
        for tile in tiles:
            first, second = (calls.run(problem, **{kind: tile}).results for _ in range(2))
            assert_accurate(problem, first, TF32_ERROR if dtype == torch.float32 else None)
            assert_same_bits(first, second)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_more_than_2_to_the_31_elements(last):
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
    results = whole.run("triton")
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
def test_views_that_reach_beyond_32_bits(last):
    need_memory(20)
    format = torch.channels_last if last else torch.contiguous_format
    whole = torch.zeros(4, 16, 2**13, 2**13, dtype=torch.bfloat16, device="cuda").to(memory_format=format)
    view = whole[:, :, :8]
    assert view.stride(0) * 3 > 2**31 > view.stride(0)
    problem = problems.make(2, (16, 16), (8, 2**13), batch=4, padding=1, dtype=torch.bfloat16)
    view.copy_(problem.input)
    here = calls.placed(problem)
    results = dataclasses.replace(here, input=view).run("triton")
    here.input = view.contiguous(memory_format=format)
    assert_same_bits(results, here.run("triton"))
    assert_accurate(here, results)


def test_a_side_stream():
    """The input is still zero when the call is made, and there in time for a kernel on the same stream."""
    problem = make(SMALL, torch.bfloat16)
    expected, real = problem.run("triton"), problem.input.clone()
    problem.input.zero_()
    factor = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(40):
            factor = factor @ factor
        problem.input.copy_(real)
        results = problem.run("triton")
    stream.synchronize()
    assert_same_bits(results, expected)


@pytest.mark.parametrize("index", range(torch.cuda.device_count()))
def test_every_device_while_the_first_is_current(index):
    problem = problems.make(2, (16, 32), padding=1, formats=(True, True), dtype=torch.bfloat16)
    there = calls.placed(problem, torch.device("cuda", index))
    with torch.cuda.device(0):
        results = there.run("triton")
        assert torch.cuda.current_device() == 0
    assert all(value.device.index == index for value in results.values())
    problems.assert_accurate(problem, {name: value.cpu() for name, value in results.items()})


def network(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(
        CompactConv2d(3, 32, 3, padding=1, alpha=4.0, activation="relu", backend="triton"),
        CompactConv2d(32, 64, 3, stride=2, padding=1, alpha=4.0, backend="triton"),
        nn.ReLU(inplace=True),
        CompactConv2d(64, 64, 3, padding=1, groups=2, alpha=4.0, activation="relu", backend="triton"),
        nn.Flatten(),
        CompactLinear(64 * 8 * 8, 10, alpha=4.0, backend="triton"),
    )
    return model.to("cuda", dtype, memory_format=torch.channels_last)


def training_step(model, optimizer, x, target):
    optimizer.zero_grad(set_to_none=True)
    loss = F.cross_entropy(model(x).float(), target)
    loss.backward()
    optimizer.step()
    return loss


@pytest.mark.parametrize("dtype", [*NARROW, torch.float32], ids=str)
def test_a_training_step_as_a_cuda_graph(dtype):
    """Replayed over several batches, it trains as the steps do that are called one by one."""
    model = network(dtype)
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


@pytest.mark.parametrize("dtype", [*NARROW, torch.float32], ids=str)
def test_a_training_step_never_waits_for_the_device(dtype):
    model = network(dtype)
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


@pytest.fixture
def compiled():
    """What Triton compiles from here on."""
    found, runtime = [], triton.knobs.runtime
    before = runtime.jit_post_compile_hook
    runtime.jit_post_compile_hook = lambda **event: found.append(event["repr"])
    yield found
    runtime.jit_post_compile_hook = before


@pytest.mark.parametrize("dtype", [*NARROW, torch.float32], ids=str)
@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
@pytest.mark.parametrize(
    "layer",
    [
        Layer("descriptors", 256, 48, 80, 10),
        Layer("pointers", 256, 3, 48, 10),
        Layer("odd", 256, 63, 65, 7),
        Layer("strided", 256, 48, 80, 10, stride=2),
        Layer("contiguous", 256, 48, 80, 10, channels_last=False),
        Layer("depthwise", 256, 48, 48, 10, groups=48),
        Layer("linear", 256, 400, 80, kernel=1, padding=0, rank=0),
    ],
    ids=lambda layer: layer.name,
)
@pytest.mark.parametrize("batches", [(256, 255, 200, 128, 1000), (16, 15, 5)], ids=str)
def test_nothing_is_compiled_anew_for_another_batch(batches, layer, relu, dtype, compiled):
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "tf32"
    make(layer, dtype, batches[0], relu).run("triton")
    first = list(compiled)
    for batch in batches[1:]:
        make(layer, dtype, batch, relu).run("triton")
    assert compiled == first


def test_the_compiler_is_heard_of(compiled):
    """Else the test above would hold for want of news: this shape is no other test's."""
    make(Layer("unheard of", 2, 37, 41, 5), torch.bfloat16).run("triton")
    assert any("forward_gather" in event for event in compiled)
    assert any("backward_prologue" in event for event in compiled)


def test_calls_from_several_threads_do_not_disturb_one_another():
    many = [make(Layer("of many", 4, 16, 16 + 8 * i, 20), torch.bfloat16) for i in range(8)]
    alone = [problem.run("triton") for problem in many]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda problem: problem.run("triton"), many))
    for one, two in zip(alone, together, strict=True):
        assert_same_bits(one, two)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_one_image_expanded_over_the_batch(dtype):
    """Its images lie at stride 0, which a descriptor may not be able to say."""
    x, w = torch.randn(1, 64, 14, 14, device="cuda", dtype=dtype), torch.randn(64, 64, 3, 3, device="cuda", dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last).expand(8, 64, 14, 14)
    assert x.stride(0) == 0
    y = compact_conv2d(x, w, padding=1, backend="triton")
    assert torch.equal(
        y, compact_conv2d(x.contiguous(memory_format=torch.channels_last), w, padding=1, backend="triton")
    )
