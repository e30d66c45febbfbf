"""torch.compile, torch.export and what is made of an exported program; torch.fx; torch.jit."""

import copy
import subprocess
import sys

import onnxruntime
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import aoti_compile_and_package, aoti_load_package
from torch.fx.experimental.proxy_tensor import make_fx

from ccn_kernels import CompactConv2d, ops

SECTION = "Compile and export"
pytestmark = pytest.mark.usefixtures("fresh_compiler")


def images(count=2):
    return torch.randn(count, 3, 8, 8)


def steps(network, batches):
    """Losses of a few training steps."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    for x in batches:
        optimizer.zero_grad()
        loss = network(x).square().mean()
        loss.backward()
        optimizer.step()
        yield loss.item()


@pytest.mark.parametrize("dynamic", [False, True, None], ids=["static", "dynamic", "automatic"])
@pytest.mark.behaviour(SECTION, "`torch.compile(fullgraph=True)`: training, inference; few graphs as the batch changes")
def test_compile(network, dynamic):
    torch.use_deterministic_algorithms(False)  # of reflection padding, PyTorch has no deterministic gradient to compile
    counter = CompileCounterWithBackend("aot_eager")
    twin = copy.deepcopy(network)
    compiled = torch.compile(twin, backend=counter, fullgraph=True, dynamic=dynamic)
    batches = [images(count) for count in (4, 2, 7, 5)]
    torch.testing.assert_close(list(steps(compiled, batches)), list(steps(network, batches)), rtol=1e-4, atol=1e-6)
    assert counter.frame_count <= (4 if dynamic is False else 2)
    with torch.inference_mode():
        torch.testing.assert_close(compiled.eval()(batches[0]), network.eval()(batches[0]), rtol=1e-4, atol=1e-5)


@pytest.fixture
def exported(network):
    """The network, and its program with a dynamic batch."""
    batch = torch.export.Dim("batch", min=2, max=64)
    network.eval()
    return network, torch.export.export(network, (images(4),), dynamic_shapes=({0: batch},))


def targets(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.behaviour(SECTION, "`torch.export` with a dynamic batch; decomposed to ATen's operators",
                       ours="works; decomposed by `ops.decompositions()`")  # fmt: skip
def test_export(exported):
    network, program = exported
    x = images(7)
    torch.testing.assert_close(program.module()(x), network(x))
    plain = program.run_decompositions(ops.decompositions())
    assert {name.split(".")[0] for name in targets(plain) if "." in name} <= {"aten", "_operator"}
    with torch.no_grad():
        torch.testing.assert_close(plain.module()(x), network(x))


@pytest.mark.behaviour(SECTION, "a `torch.export`ed module trains")
def test_an_exported_module_trains(network):
    x = images(4)
    module = torch.export.export(network, (x,)).module()
    gradients = []
    for model in (module, network):
        loss = model(x).square().mean()
        gradients.append(torch.autograd.grad(loss, [parameter for _, parameter in sorted(model.named_parameters())]))
    torch.testing.assert_close(*gradients)


@pytest.mark.behaviour(SECTION, "`torch.export` with dynamic height and width, decomposed: strided 1x1 layers too")
def test_dynamic_images(kind):
    sizes = {axis: torch.export.Dim.DYNAMIC for axis in (0, 2, 3)}
    model = nn.Sequential(kind(3, 4, 3, padding="same"), kind(4, 5, 1, stride=2)).eval()
    program = torch.export.export(model, (images(4),), dynamic_shapes=({**sizes},))
    x = torch.randn(2, 3, 21, 19)
    for each in (program, program.run_decompositions(ops.decompositions())):
        with torch.no_grad():
            torch.testing.assert_close(each.module()(x), model(x))


def assert_onnx_runs_like(network, path, x):
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), network(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.behaviour(SECTION, "ONNX with dynamic height and width: strided 1x1 layers too")
def test_onnx_of_dynamic_images(kind, tmp_path):
    sizes, path = {axis: torch.export.Dim.DYNAMIC for axis in (0, 2, 3)}, tmp_path / "network.onnx"
    model = nn.Sequential(kind(3, 4, 3, padding="same"), kind(4, 5, 1, stride=2)).eval()
    torch.onnx.export(model, (images(4),), path, dynamo=True, dynamic_shapes=(sizes,), verbose=False)
    assert_onnx_runs_like(model, path, torch.randn(2, 3, 21, 19))


@pytest.mark.behaviour(SECTION, "ONNX: `torch.onnx.export`, run by onnxruntime")
def test_onnx(network, tmp_path):
    batch, path = torch.export.Dim("batch"), tmp_path / "network.onnx"
    torch.onnx.export(network.eval(), (images(4),), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    assert_onnx_runs_like(network, path, images(7))


@pytest.mark.behaviour(SECTION, "ONNX: `torch.onnx.export` of a `torch.export`ed program",
                       ours="works; decomposed by `ops.decompositions()`")  # fmt: skip
def test_onnx_of_a_program(exported, tmp_path):
    network, program = exported
    path = tmp_path / "network.onnx"
    torch.onnx.export(program.run_decompositions(ops.decompositions()), f=path, dynamo=True, verbose=False)
    assert_onnx_runs_like(network, path, images(7))


@pytest.mark.behaviour(SECTION, "AOTInductor: `aoti_compile_and_package`, loaded and run",
                       ours="works; with our kernels, or decomposed without the package")  # fmt: skip
def test_aotinductor(exported, kind, tmp_path):
    network, program = exported
    x, package = images(7), str(tmp_path / "network.pt2")
    expected = network(x).detach()
    aoti_compile_and_package(program, package_path=package)
    torch.testing.assert_close(aoti_load_package(package)(x).detach(), expected, rtol=1e-4, atol=1e-5)
    if kind is CompactConv2d:
        aoti_compile_and_package(program.run_decompositions(ops.decompositions()), package_path=package)
        torch.testing.assert_close(loaded_without_us(package, x, tmp_path), expected, rtol=1e-4, atol=1e-5)


def loaded_without_us(package, x, folder):
    """What a process that knows PyTorch alone gets out of a package."""
    torch.save(x, folder / "x.pt")
    script = (
        "import sys, torch\n"
        "package, folder = sys.argv[1:]\n"
        "y = torch._inductor.aoti_load_package(package)(torch.load(folder + '/x.pt'))\n"
        "assert 'ccn_kernels' not in sys.modules\n"
        "torch.save(y.detach(), folder + '/y.pt')"
    )
    subprocess.run([sys.executable, "-c", script, package, str(folder)], check=True, cwd=folder)
    return torch.load(folder / "y.pt")


@pytest.mark.behaviour(SECTION, "`torch.fx.symbolic_trace`")
def test_fx(network, kind, function):
    traced, x = torch.fx.symbolic_trace(network.eval()), images()
    assert torch.equal(traced(x), network(x))
    seen = {node.target for node in traced.graph.nodes}
    assert ("0" if kind is nn.Conv2d else function) in seen  # PyTorch's own layers are leaves of the graph


@pytest.mark.behaviour(SECTION, "`make_fx`")
def test_make_fx(network):
    x = images()
    torch.testing.assert_close(make_fx(network.eval())(x)(x), network(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("way", [torch.jit.script, lambda m: torch.jit.trace(m, images())], ids=["script", "trace"])
@pytest.mark.behaviour(SECTION, "`torch.jit.script`, `torch.jit.trace`",
                       ours="RuntimeError that names what to use instead")  # fmt: skip
def test_jit(network, kind, way):
    if kind is nn.Conv2d:
        x = images()
        torch.testing.assert_close(way(network.eval())(x), network(x))
    else:
        with pytest.raises(RuntimeError, match=r"torch\.export"):
            way(network.eval())
