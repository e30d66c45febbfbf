"""What the CUDA driver is asked for when passes are replayed, by a driver that only remembers."""

import ctypes
import os
import re
import struct
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import triton
from triton.backends.driver import expand_signature

from ccn_kernels import _C
from ccn_kernels.backends.triton import native, offline, replay
from ccn_kernels.backends.triton.forward_pass import Forward
from ccn_kernels.backends.triton.launch import Problem, is_descriptor
from ccn_kernels.backends.triton.tiles import PERSISTENT_TILES, Device, Tile
from ccn_kernels.workloads import Layer

H200 = Device("NVIDIA H200", 90, 132)
LAYER = Layer("64-128@16", 8, 64, 128, 16)
MAP, SMALL_TENSOR_BIT = 128, 1 << 21


class Driver:
    """The remembering driver, loaded where ``path`` is: each copy of the file has a memory of its own."""

    def __init__(self, path):
        self.path = str(path)
        self.library = ctypes.CDLL(self.path)

    def expect(self, *sizes):
        self.library.fake_expect((ctypes.c_uint64 * len(sizes))(*sizes), ctypes.c_size_t(len(sizes)))

    def read(self, name, type=ctypes.c_uint64):
        function = getattr(self.library, f"fake_{name}")
        function.restype = ctypes.c_size_t
        found = (type * function(None))()
        function(found)
        return list(found)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    path = tmp_path_factory.mktemp("driver") / "libcuda.so"
    compiler, source = os.environ.get("CXX", "g++"), Path(__file__).with_name("fake_driver.cpp")
    subprocess.run([compiler, "-std=c++17", "-shared", "-fPIC", "-o", path, source], check=True)
    return path


@pytest.fixture
def driver(built, tmp_path):
    copy = tmp_path / built.name
    copy.write_bytes(built.read_bytes())
    return Driver(copy)


def test_numbers_and_addresses(driver):
    driver.expect(4, 8, 8)
    launches = _C.Launches(driver.path, 0)
    number, first, second = _C.Value(struct.pack("f", 0.25)), _C.Address(1), _C.Address(0)
    launches.add(_C.Kernel(77, (5, 6, 7), 256, 4096, True, [number, first, second]))
    launches.add(_C.Kernel(78, (1, 1, 1), 128, 0, False, [number, second, first]))
    launches.add(_C.Kernel(79, (0, 1, 1), 128, 0, False, [number, second, first]))  # of no blocks: not launched
    launches.run(9, [2**40, 2**41])
    assert driver.read("numbers") == [77, 5, 6, 7, 256, 1, 1, 4096, 9, 1, 6, 1, 78, 1, 1, 1, 128, 1, 1, 0, 9, 0, 0, 0]
    expected = struct.pack("=fQQfQQ", 0.25, 2**41, 2**40, 0.25, 2**40, 2**41)
    assert bytes(driver.read("bytes", ctypes.c_ubyte)) == expected
    assert driver.library.fake_has_context()  # of a thread that had none


def test_a_map_is_made_again_only_for_another_address(driver):
    driver.expect(MAP)
    launches = _C.Launches(driver.path, 0)
    boxes = _C.Boxes(0, type=9, swizzle=3, shape=[4, 16, 64], strides=[2048, 128, 2], box=[1, 8, 32])
    launches.add(_C.Kernel(1, (1, 1, 1), 128, 0, False, [boxes]))
    for address in (1024, 1024, 2048):
        launches.run(0, [address])
    head, tail = [9, 3], [64, 16, 4, 128, 2048, 32, 8, 1, 1, 1, 1, 0, 3, 2, 0]
    assert driver.read("encoded") == [*head, 1024, *tail, *head, 2048, *tail]
    words = struct.unpack("=48Q", bytes(driver.read("bytes", ctypes.c_ubyte)))
    assert words[0::16] == (1024, 1024, 2048)
    assert all(word == 2**64 - 1 - SMALL_TENSOR_BIT for word in words[1::16])  # 8 KB: see launches.cpp


def test_what_the_driver_refuses_and_what_is_no_parameter(driver, tmp_path):
    launches = _C.Launches(driver.path, 0)
    launches.add(_C.Kernel(1, (1, 1, 1), 128, 0, False, [_C.Address(3)]))
    with pytest.raises(IndexError):
        launches.run(0, [1, 2])
    driver.library.fake_fail(700)
    with pytest.raises(RuntimeError, match="cuLaunchKernelEx: as asked"):
        launches.run(0, [1, 2, 3, 4])
    with pytest.raises(ValueError, match="five axes"):
        launches.add(_C.Kernel(1, (1, 1, 1), 1, 0, False, [_C.Boxes(0, 9, 3, [1] * 6, [1] * 6, [1] * 6)]))
    with pytest.raises(ValueError, match="size"):
        launches.add(_C.Kernel(1, (1, 1, 1), 1, 0, False, [_C.Value(b"")]))
    with pytest.raises(RuntimeError, match="cannot be opened"):
        _C.Launches(str(tmp_path / "no-driver.so"), 0)


@pytest.fixture(params=[Tile("descriptor"), PERSISTENT_TILES[1]], ids=lambda tile: tile.kernel)
def recorded(request, driver, monkeypatch):
    """The launches of a forward pass, compiled for a GPU that is not there, the operands, and the recipe."""
    monkeypatch.setattr(native, "DRIVER", driver.path)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 5, raising=False)
    monkeypatch.setattr(replay, "_index", lambda problem: 0)
    traced = []

    def issue(launch):
        with offline.target(90):
            kernel = launch.kernel.warmup(**launch.arguments, grid=launch.grid, **launch.options)
        kernel.module, kernel.function = "loaded", 4000 + len(traced)
        traced.append((launch, kernel))
        return kernel

    x, w, bias, alpha = operands = LAYER.operands(torch.bfloat16, "cpu")
    problem = Problem(x, w, LAYER.spec, H200, issue, {"forward": request.param})
    results = Forward(problem, bias, alpha, True).run()
    recipe = replay._record(operands, results, problem)
    return SimpleNamespace(problem=problem, operands=operands, traced=traced, recipe=recipe)


def test_kernels_get_the_tensors_of_the_replay_as_triton_would_pass_them(recorded, driver):
    tensors = [torch.empty_like(tensor) for tensor in (*recorded.operands, *recorded.problem.buffers)]
    before = map(id, (*recorded.operands, *recorded.problem.buffers))
    addresses = dict(zip(before, (tensor.data_ptr() for tensor in tensors), strict=True))
    assert [type(step) for step in recorded.recipe.steps] == [replay.Together]  # both launches by one call
    expected = [parameters(*traced, addresses) for traced in recorded.traced]
    for each in expected:
        driver.expect(*map(len, each))
    recorded.recipe.steps[0].replay(tensors)
    numbers = driver.read("numbers")
    assert [numbers[0::12], numbers[8::12], numbers[9::12]] == [[4000, 4001], [5, 5], [0, 1]]
    assert [numbers[1:4], numbers[13:16]] == [[*launch.grid, 1, 1][:3] for launch, _ in recorded.traced]
    assert numbers[4::12] == [reqntid(kernel) for _, kernel in recorded.traced]
    assert bytes(driver.read("bytes", ctypes.c_ubyte)) == b"".join(b"".join(each) for each in expected)


def test_a_delta_beyond_fp32_is_infinite_to_kernels():
    """As Triton's own launcher narrows it."""
    packer = native._Packer(SimpleNamespace(Value=bytes), {})
    assert packer._number("fp32", 1e39) == struct.pack("=f", float("inf"))


@pytest.mark.parametrize("mode", ["gsan", "consan"])
def test_kernels_that_are_instrumented_are_launched_by_triton(recorded, mode):
    """They take more than their arguments."""
    launch, kernel = recorded.traced[0]
    assert native._is_plain(kernel)
    other = SimpleNamespace(
        src=kernel.src, metadata=kernel.metadata._replace(instrumentation_mode=mode)
    )  # the kernel itself is cached
    assert native.batch([(launch, other)], {}, 0) is None


@pytest.mark.parametrize(("hook", "told"), [(None, False), (print, True)])
def test_a_hook_in_the_place_of_triton_s_chain(monkeypatch, hook, told):
    monkeypatch.setattr(triton.knobs.runtime, "launch_enter_hook", hook)
    assert native.hooked() == told


def test_kernels_that_take_scratch_memory_are_left_to_triton(recorded):
    launch, kernel = recorded.traced[1]
    parts = {id(tensor): part for part, tensor in enumerate((*recorded.operands, *recorded.problem.buffers))}
    assert native.batch([(launch, kernel)], parts, 0) is not None
    changed = SimpleNamespace(src=kernel.src, metadata=kernel.metadata._replace(global_scratch_size=8))
    assert native.batch([(launch, changed)], parts, 0) is None


def test_profilers_that_hook_triton_are_told(recorded, driver, monkeypatch):
    """They listen to its launcher, so it launches while they do."""
    monkeypatch.setattr(triton.knobs.runtime.launch_enter_hook, "calls", [print])
    tensors, launched = [*recorded.operands, *recorded.problem.buffers], []
    (both,) = recorded.recipe.steps
    both._replace(steps=[step._replace(run=lambda *given: launched.append(given)) for step in both.steps]).replay(
        tensors
    )
    for given, (launch, _) in zip(launched, recorded.traced, strict=True):
        assert [type(value) for value in given] == [type(launch.arguments[name]) for name in launch.kernel.arg_names]
    assert driver.read("numbers") == []


def parameters(launch, kernel, addresses):
    """What Triton's launcher makes of the arguments: bytes of each parameter."""
    kinds = expand_signature(kernel.src.signature.values(), kernel.metadata.tensordesc_meta, "nvTmaDesc")
    found = []
    for kind, value in zip(kinds, expanded(launch, kernel), strict=True):
        pairs = zip(kind, value, strict=True) if isinstance(kind, tuple) else [(kind, value)]
        found += [packed(*pair, addresses) for pair in pairs if pair[0] != "constexpr"]
    return [*found, bytes(8), bytes(8)]


def reqntid(kernel):
    """Threads of a program as it was compiled, those of all its parts."""
    return int(re.search(r"\.reqntid (\d+)", kernel.asm["ptx"])[1])


def expanded(launch, kernel):
    for name in kernel.src.signature:
        value = launch.arguments[name]
        yield from (value, *value.shape, *value.strides) if is_descriptor(value) else (value,)


def packed(kind, value, addresses):
    if kind == "nvTmaDesc":  # as the remembering driver makes it
        return struct.pack("=Q", addresses[id(value.base)]) + bytes([255]) * (MAP - 8)
    if kind.startswith("*"):
        return struct.pack("=Q", addresses[id(value)])
    return struct.pack({"i32": "=i", "i64": "=q", "fp32": "=f"}[kind], value)
