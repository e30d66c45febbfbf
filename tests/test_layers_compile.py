"""torch.compile and torch.export of the layers: one graph, the eager results, no more recompiling than nn.Conv2d."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from ccn_kernels import CompactConv1d, CompactConv2d, CompactConv3d, CompactLinear
from ccn_kernels.functional import compact_conv2d


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def network(backend):
    """Every thing that could break a graph: named padding, modes, groups, a ReLU in place, unequal ranks."""
    return nn.Sequential(
        CompactConv2d(3, 8, 3, padding="same", activation="relu", backend=backend),
        CompactConv2d(8, 6, (2, 3), padding=1, padding_mode="reflect", groups=2, bias=False, backend=backend),
        nn.ReLU(inplace=True),
        nn.Flatten(2),
        CompactConv1d(6, 4, 3, stride=2, dilation=2, learn_alpha=False, backend=backend),
        nn.Flatten(),
        CompactLinear(120, 5, backend=backend),
    )


def assert_trains_alike(compiled, eager, x):
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = compiled(one), eager(two)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn_like(y)
    compiled.zero_grad()
    eager.zero_grad()
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-5)
    for (name, p), q in zip(compiled.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("dynamic", "last"), [(False, True), (True, False), (None, True)], ids=["static", "dynamic", "automatic"]
)
def test_training_in_one_graph_equals_eager(backend, dynamic, last):
    eager = network(backend)
    compiled = torch.compile(copy.deepcopy(eager), backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for batch in (3, 5):
        x = torch.randn(batch, 3, 8, 7)
        assert_trains_alike(compiled, eager, x.contiguous(memory_format=torch.channels_last) if last else x)


@pytest.mark.parametrize(("mode", "dynamic"), [(torch.no_grad, False), (torch.inference_mode, True)])
def test_inference_in_one_graph_equals_eager(backend, mode, dynamic):
    eager = network(backend).eval()
    compiled = torch.compile(eager, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    with mode():
        for batch in (2, 4):
            x = torch.randn(batch, 3, 8, 7)
            torch.testing.assert_close(compiled(x), eager(x), rtol=1e-5, atol=1e-6)


def test_inductor_trains_alike(backend):
    """The default compiler, on one small network for each backend: its C++ takes seconds to build."""
    eager = nn.Sequential(CompactConv2d(3, 4, 3, padding=1, backend=backend), nn.ReLU(), CompactConv2d(4, 1, 3))
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, dynamic=True)
    for batch in (2, 3):
        assert_trains_alike(compiled, eager, torch.randn(batch, 3, 6, 6))


@pytest.mark.parametrize(("channels", "kernel"), [(1, 3), (6, 6)], ids=["one channel", "one pixel"])
def test_channels_last_gradients_where_the_output_could_be_either_format(kernels, channels, kernel):
    """The compiled backward asserts the strides that the fakes promised."""
    eager = nn.Sequential(nn.Conv2d(2, 4, 1), CompactConv2d(4, channels, kernel, backend=kernels), nn.Flatten(1))
    eager = eager.to(memory_format=torch.channels_last)
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True)
    assert_trains_alike(compiled, eager, torch.randn(3, 2, 6, 6).contiguous(memory_format=torch.channels_last))


def recompilations(layer, inputs, dynamic):
    """Compilations after the first call."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=dynamic)
    counts = []
    for x in inputs:
        compiled(x).sum().backward()
        counts.append(counter.frame_count)
    assert counts[0] > 0
    return counts[-1] - counts[0]


@pytest.mark.parametrize("dynamic", [True, None], ids=["dynamic", "automatic"])
def test_other_batch_sizes_compile_no_more_often_than_a_plain_layer(backend, dynamic):
    inputs = [torch.randn(batch, 3, 8, 8) for batch in (4, 2, 7, 1, 5)]
    ours = CompactConv2d(3, 4, 3, padding=1, activation="relu", backend=backend)
    plain = recompilations(nn.Conv2d(3, 4, 3, padding=1), inputs, dynamic)
    assert recompilations(ours, inputs, dynamic) <= plain


def test_other_image_sizes_compile_no_more_often_than_a_plain_layer(backend):
    inputs = [torch.randn(2, 3, size, size + 1) for size in (8, 6, 9, 12)]
    ours = CompactConv2d(3, 4, 3, padding="same", stride=1, backend=backend)
    assert recompilations(ours, inputs, None) <= recompilations(nn.Conv2d(3, 4, 3, padding="same"), inputs, None)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_the_function_compiles_with_numbers_and_tensors_for_alpha(backend, activation):
    x, w = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def compiled(x, alpha):
        return compact_conv2d(x, w, None, alpha, padding=(1, 0), activation=activation, backend=backend)

    for alpha in (2.0, torch.tensor(2.0)):
        expected = compact_conv2d(x, w, None, alpha, padding=(1, 0), activation=activation, backend=backend)
        torch.testing.assert_close(compiled(x, alpha), expected)


def test_autocast_compiles(backend):
    layer = nn.Sequential(CompactConv2d(3, 4, 3, backend=backend), CompactConv2d(4, 4, 3, backend=backend))
    compiled, x = torch.compile(layer, backend="aot_eager", fullgraph=True), torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = compiled(x), layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("layer", [CompactConv2d(3, 4, 3, padding=1), CompactConv3d(3, 4, 3), CompactLinear(3, 4)])
def test_export_with_a_dynamic_batch(backend, layer):
    layer = copy.deepcopy(layer)
    layer.backend = backend
    shape = {2: (), 4: (6, 6), 5: (4, 4, 4)}[layer.weight.dim()]
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(layer, (torch.randn(4, 3, *shape),), dynamic_shapes=({0: batch},))
    x = torch.randn(7, 3, *shape)
    torch.testing.assert_close(program.module()(x), layer(x))
