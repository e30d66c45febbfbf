"""What only a GPU can show of Triton's kernels: large tiles, and what is compiled when."""

import dataclasses

import calls
import pytest
import torch
import triton
from gpu_problems import CLASSES, KINDS, NARROW, TF32_ERROR, WIDE, assert_accurate, make
from problems import assert_same_bits

from ccn_kernels.backends.triton import device, limits, native
from ccn_kernels.backends.triton.launch import Problem
from ccn_kernels.backends.triton.tiles import PERSISTENT_TILES, UNTRIED_TILES, Tile
from ccn_kernels.workloads import Layer

if calls.INTERPRETED or not torch.cuda.is_available():
    pytest.skip("it needs a CUDA GPU, and kernels that are compiled for it", allow_module_level=True)

IMAGES = Layer("whole images", 64, 256, 512, 4)
WAVES = Layer("waves of tiles", 256, 64, 64, 21)  # persistent ones, where they can run


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
        ways = [(1, "plane"), (2, "plane")] if kind == "forward" else [(1, "plane")]
        ways += [(1, squares) for squares in ("rows", "images")] if kind == "forward" else []
        tiles = [Tile("descriptor", *size, *way) for size in sizes for way in ways]
        tiles.append(Tile("gather", 128, 128, 32, 8, 3))
    call = calls.resolved(make(layer, dtype))
    request = Problem(call.input, call.weight, call.spec, device(None)).request(kind)
    tiles = [tile for tile in tiles if limits.can_run(tile, request, device(None)) is None]
    has_descriptors = device(None).capability >= 90 and not (kind == "wgrad" and dtype == torch.float32)
    assert ("descriptor" in {tile.kernel for tile in tiles}) == has_descriptors
    for seed in range(3):
        torch.manual_seed(seed)
        problem = make(layer, dtype)
        for tile in tiles:
            first, second = (calls.run(problem, **{kind: tile}).results for _ in range(2))
            assert_accurate(problem, first, TF32_ERROR if dtype == torch.float32 else None)
            assert_same_bits(first, second)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
@pytest.mark.parametrize(
    ("tile", "layer"),
    [
        (PERSISTENT_TILES[0], Layer("all weights stay", 67, 64, 56, 29)),
        (PERSISTENT_TILES[0], Layer("weights come and go", 33, 128, 64, 28)),
        (PERSISTENT_TILES[1], Layer("two blocks", 65, 192, 200, 15)),
        (PERSISTENT_TILES[1], Layer("one tile", 2, 64, 128, 5)),
        (PERSISTENT_TILES[1], Layer("pixels", 40, 128, 128, 27, kernel=1, padding=0)),
        (PERSISTENT_TILES[1], Layer("wide windows", 40, 64, 72, 21, kernel=5, padding=4)),
        (UNTRIED_TILES[0], Layer("few stages", 67, 64, 56, 29)),
        (UNTRIED_TILES[1], Layer("tall, all weights stay", 13, 64, 56, 23)),
        (UNTRIED_TILES[2], Layer("tall, weights come and go", 33, 128, 64, 28)),
        (UNTRIED_TILES[3], Layer("tall, two blocks", 13, 192, 200, 27)),
        (UNTRIED_TILES[4], Layer("tall, wide windows", 13, 64, 72, 23, kernel=5, padding=4)),
    ],
    ids=lambda value: value.name if isinstance(value, Layer) else None,
)
def test_persistent_tiles(tile, layer, relu, dtype):
    """Ragged edges on all sides; trained without and, by the output alone, with the fused ReLU; twice each."""
    call = calls.resolved(make(layer, dtype))
    request = Problem(call.input, call.weight, call.spec, device(None)).request("forward")
    reason = limits.can_run(tile, request, device(None))
    if reason is not None:
        pytest.skip(reason)
    for seed in range(3):
        torch.manual_seed(seed)
        problem = make(layer, dtype, relu=relu)
        first, second = (calls.run(problem, forward=tile).results for _ in range(2))
        assert_accurate(problem, first)
        assert_same_bits(first, second)


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
@pytest.mark.parametrize("layer", KINDS, ids=lambda layer: layer.name)
@pytest.mark.parametrize("batches", CLASSES, ids=str)
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


@pytest.mark.parametrize("dtype", [*NARROW, torch.float32], ids=str)
@pytest.mark.parametrize("layer", [WIDE, IMAGES, WAVES, Layer("few", 64, 3, 64, 32)], ids=lambda layer: layer.name)
def test_replays_are_launched_as_triton_launches_them(layer, dtype, monkeypatch):
    problem = make(layer, dtype)
    first = problem.run("triton")  # the recording call: Triton's launcher
    launched = []
    replay_batch = native.Batch.replay
    monkeypatch.setattr(native.Batch, "replay", lambda *given: (launched.append(given), replay_batch(*given)))
    moved = dataclasses.replace(problem, input=problem.input.clone(), grad=problem.grad.clone())
    for again in (problem, moved, problem):  # other addresses in between
        assert_same_bits(first, again.run("triton"))
    assert launched
    launched.clear()
    monkeypatch.setattr(native, "hooked", lambda: True)
    assert_same_bits(first, problem.run("triton"))
    assert not launched
