"""The choice of tiles, the boxes they cover, and the launches they become: on meta tensors, so that nothing runs."""

import functools
import itertools
import json
import math

import problems
import pytest
import torch
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from ccn_kernels.backends.triton import config, limits
from ccn_kernels.backends.triton.backward_pass import Backward
from ccn_kernels.backends.triton.forward_pass import Forward
from ccn_kernels.backends.triton.geometry import Geometry, box_of, is_linear, strides_of
from ccn_kernels.backends.triton.launch import Problem, is_descriptor, tiles_of
from ccn_kernels.backends.triton.tiles import HYBRID, PERSISTENT_TILES, SQUARES, Device, Tile, batch_class
from ccn_kernels.spec import ConvSpec
from ccn_kernels.workloads import LAYERS, Layer

H200, A100 = Device("NVIDIA H200", 90, 132), Device("NVIDIA A100-SXM4-80GB", 80, 108)
DEVICES = [H200, A100, Device("Tesla T4", 75, 40), Device("interpreter", 90, 1, is_interpreter=True)]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "tf32": torch.float32, "ieee": torch.float32}
KINDS = ("forward", "dgrad", "wgrad")
SPEC = ConvSpec((1, 1), (1, 1), (1, 1), 1, 0.01, False)
# Of the largest class of batches; and odd sizes, of which products are multiples of 16 for some batches only.
MANY = [layer for layer in LAYERS if layer.batch >= 128]
MANY += [Layer("odd 63-65@7", 256, 63, 65, 7), Layer("odd 3-5@9 3-d", 256, 3, 5, 9, rank=3)]


@pytest.fixture
def user_table(monkeypatch, tmp_path):
    """Writes a user's own table; ``table`` is its content, or text as it stands."""

    def clear():
        config.table.cache_clear()
        config.choose.cache_clear()

    def write(content):
        path = tmp_path / "tiles.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        monkeypatch.setenv(config.USER_TABLE, str(path))
        clear()
        return path

    monkeypatch.delenv(config.USER_TABLE, raising=False)
    clear()
    yield write
    monkeypatch.undo()
    clear()


def precise(dtype):
    """Sets what PyTorch allows fp32 products to be; returns the dtype's tensor type."""
    for setting in (torch.backends.cudnn.conv, torch.backends.cuda.matmul):
        setting.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
    return DTYPES[dtype]


def problem_of(layer, dtype, device, issue=None, **changed):
    operands = layer._replace(**changed).operands(precise(dtype), "meta")
    return Problem(*operands[:2], layer.spec, device, issue), operands


def recorded(layer, dtype, device=H200, relu=False, **changed):
    """The launches of a training step."""
    launches = []
    problem, (_, _, bias, alpha) = problem_of(layer, dtype, device, launches.append, **changed)
    problem.spec = problem.spec._replace(relu=relu)
    output, quotient, norm = Forward(problem, bias, alpha, not relu).run()
    saved = (output, None) if relu else (None, quotient)
    Backward(problem, torch.empty_like(output), bias, alpha, *saved, norm, [True] * 4).run()
    return launches


@functools.cache
def binder(kernel):
    """Triton's own function from arguments to what a compiled kernel is specialised on."""
    if not isinstance(kernel, JITFunction):  # interpreted
        kernel = JITFunction(kernel.fn, do_not_specialize=kernel.kwargs["do_not_specialize"])
    return create_function_from_signature(kernel.signature, kernel.params, make_backend(GPUTarget("cuda", 90, 32)))


def specialised(launch):
    """What decides whether Triton compiles a launch anew, by argument."""
    bound, specialisation, options = binder(launch.kernel)(**launch.arguments, **launch.options)
    return {**dict(zip(bound, specialisation, strict=True)), **options}


def request_of(layer, dtype="bfloat16", kind="forward", device=H200):
    return problem_of(layer, dtype, device)[0].request(kind)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_choice_is_a_function_and_can_run(dtype, device, user_table):
    for layer, kind in itertools.product(LAYERS, KINDS):
        problem, _ = problem_of(layer, dtype, device)
        chosen = problem.tile(kind)
        assert limits.can_run(chosen, problem.request(kind), device) is None, (layer, kind)
        config.choose.cache_clear()
        assert problem_of(layer, dtype, device)[0].tile(kind) == chosen
        assert device.capability >= 90 or chosen.kernel != "descriptor"


def test_kernels_of_our_own_take_the_layers_they_are_for():
    """On a Hopper GPU: the products of wide layers go by descriptors, exact fp32 to cuDNN, depthwise to its kernel.

    cuDNN has the weight's gradient of maps whose sides are no powers of two, where it is not narrowed to fp16.
    """
    wide, odd = (next(layer for layer in LAYERS if layer.name == name) for name in ("256-256@8", "256-256@14"))
    depthwise = next(layer for layer in LAYERS if layer.groups == layer.in_channels > 1)
    for dtype in ("bfloat16", "float16"):
        assert {config.choose(request_of(wide, dtype, kind), H200).kernel for kind in KINDS} == {"descriptor"}
        wgrad = config.choose(request_of(odd, dtype, "wgrad"), H200).kernel
        assert wgrad == ("descriptor" if dtype == "float16" else "hybrid")
    assert {config.choose(request_of(wide, "ieee", kind), H200) for kind in KINDS} == {HYBRID}
    assert config.choose(request_of(depthwise), H200).kernel == "depthwise"


WAVES = next(layer for layer in LAYERS if layer.name == "128-128@28")


@pytest.mark.parametrize(
    ("chosen", "device", "dtype", "changed"),
    [
        (True, H200, "bfloat16", {}),
        (True, H200._replace(name=""), "float16", {"size": 29, "out_channels": 64, "padding": 2}),
        (False, H200._replace(capability=100), "bfloat16", {}),
        (False, H200._replace(is_interpreter=True), "bfloat16", {}),
        (False, H200, "tf32", {}),
        (False, H200, "float16", {"batch": 16}),  # too few tiles
        (False, H200, "bfloat16", {"stride": 2}),
        (False, H200, "bfloat16", {"groups": 2}),
        (False, H200, "bfloat16", {"in_channels": 96}),
        (False, H200, "bfloat16", {"out_channels": 132}),  # of 264 bytes
        (False, H200, "bfloat16", {"in_channels": 64, "kernel": 1, "padding": 0}),  # of one step
        (False, H200, "bfloat16", {"channels_last": False}),
    ],
)
def test_persistent_tiles_are_chosen_where_they_pay(chosen, device, dtype, changed, monkeypatch):
    request = request_of(WAVES._replace(**changed), dtype, device=device)
    assert (config.choose(request, device) in PERSISTENT_TILES) == chosen
    monkeypatch.setattr(limits, "triton_release", lambda: "3.7")
    assert "found 3.7" in limits.can_run(PERSISTENT_TILES[1], request_of(WAVES), H200)


def table_of(entries, device=H200):
    entries = [{"kind": kind, "key": key, "tile": tile} for kind, key, tile in entries]
    return {"device": device.name, "entries": entries}


@pytest.mark.parametrize("kind", KINDS)
def test_a_measured_tile_wins_over_the_heuristic(kind, user_table):
    request = request_of(LAYERS[1], kind=kind)
    heuristic = config.choose(request, H200)
    measured = {"kernel": "gather", "places": 16, "outputs": 16, "depth": 16, "warps": 2, "stages": 1}
    user_table(table_of([(kind, request.key, measured)]))
    assert config.choose(request, H200) == Tile(**measured) != heuristic
    others = [other for other in KINDS if other != kind]
    assert all(config.choose(request_of(LAYERS[1], kind=other), H200) != Tile(**measured) for other in others)
    assert config.choose(request_of(LAYERS[2], kind=kind), H200) != Tile(**measured)
    for batch in (1, 1000):  # the key knows no batch
        assert config.choose(request_of(LAYERS[1]._replace(batch=batch), kind=kind), H200) == Tile(**measured)


def test_another_gpus_table_is_ignored(user_table):
    request = request_of(LAYERS[1])
    heuristic = config.choose(request, H200)
    user_table(table_of([("forward", request.key, {"kernel": "gather"})], device=A100))
    assert config.choose(request, H200) == heuristic
    assert config.table("no such GPU") == {kind: {} for kind in KINDS}


@pytest.mark.parametrize(
    "tile",
    [
        {"kernel": "depthwise"},
        {"kernel": "no such kernel"},
        {"kernel": "gather", "squares": "images"},
        {"kernel": "descriptor", "squares": "images", "places": 16},
        {"kernel": "descriptor", "depth": 8},
        {"kernel": "descriptor", "places": 96},
        {"kernel": "descriptor", "squares": "guess"},
        {"kernel": "persistent"},
    ],
    ids=str,
)
def test_a_measured_tile_that_cannot_run_is_ignored(tile, user_table):
    request = request_of(LAYERS[1], "float16")  # which the package's own table does not know
    heuristic = config.choose(request, H200)
    user_table(table_of([("forward", request.key, tile)]))
    assert config.choose(request, H200) == heuristic


GOOD = {"kind": "forward", "key": "any", "tile": {"kernel": "gather"}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        [],
        "text",
        None,
        {},
        {"device": H200.name},
        {"device": H200.name, "entries": None},
        {"device": H200.name, "entries": ["text"]},
        {"device": H200.name, "entries": [{**GOOD, "kind": "sideways"}]},
        {"device": H200.name, "entries": [{**GOOD, "key": 7}]},
        {"device": H200.name, "entries": [{**GOOD, "tile": None}]},
        {"device": H200.name, "entries": [{**GOOD, "tile": {}}]},
        {"device": H200.name, "entries": [{**GOOD, "tile": {"kernel": "gather", "size": 3}}]},
        {"device": H200.name, "entries": [{**GOOD, "tile": {"kernel": "gather", "places": "many"}}]},
        {"device": H200.name, "entries": [{"kind": "forward", "key": "any"}]},
    ],
    ids=str,
)
def test_a_damaged_table_is_a_value_error_that_names_the_file(content, user_table):
    path = user_table(content)
    with pytest.raises(ValueError, match="not a table of tiles") as caught:
        config.choose(request_of(LAYERS[1]), H200)
    assert str(path) in str(caught.value)


def test_a_missing_table_is_an_error_that_names_the_file(user_table):
    path = user_table({})
    path.unlink()
    with pytest.raises(ValueError, match="not a table of tiles") as caught:
        config.choose(request_of(LAYERS[1]), H200)
    assert str(path) in str(caught.value)


def test_the_packages_own_tables_can_be_read():
    for path in config.CONFIGS.glob("*.json"):
        device = json.loads(path.read_text())["device"]
        assert path.name == config.file_name(device)
        assert config.read(path, device), path
    assert config.CONFIGS.is_dir()


@pytest.mark.parametrize(
    "batches", [(256, 255, 129, 1000), (128, 100, 65), (64, 63, 33, 17), (16, 15, 5), (4, 3, 2)], ids=str
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "tf32"])
@pytest.mark.parametrize("layer", MANY, ids=lambda layer: layer.name)
def test_nothing_is_compiled_anew_for_another_batch(layer, dtype, batches):
    first, *others = ([specialised(x) for x in recorded(layer, dtype, batch=batch)] for batch in batches)
    for batch, other in zip(batches[1:], others, strict=True):
        for one, two in zip(first, other, strict=True):
            changed = {name: (value, two[name]) for name, value in one.items() if value != two[name]}
            assert not changed, batch


@pytest.mark.parametrize("device", DEVICES[:3], ids=lambda device: device.name)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("relu", [False, True], ids=["none", "relu"])
def test_every_launch_is_one_that_a_gpu_can_take(relu, dtype, device):
    """All arguments given, constants that Triton takes, grids and boxes within what the hardware can count."""
    for layer in LAYERS:
        for launch in recorded(layer, dtype, device, relu):
            name = f"{launch.kernel.__name__} of {layer.name}"
            assert set(launch.arguments) == set(launch.kernel.arg_names), name
            assert 0 < launch.grid[0] < 2**31, name
            assert all(0 < n < 2**16 for n in launch.grid[1:]), name
            assert launch.warps in (1, 2, 4, 8, 16), name
            specialised(launch)  # Triton knows the types of all arguments
            sizes = [value for key, value in launch.arguments.items() if key.startswith(("BLOCK", "TILE"))]
            sizes.append(math.prod(launch.arguments.get("BOX", (1,))))
            assert all(size & (size - 1) == 0 for size in sizes), name
            if "PRECISION" in launch.arguments:
                assert min(sizes[:-1]) >= 16, name  # of a product
            for argument in launch.arguments.values():
                if is_descriptor(argument):
                    assert_descriptor(argument, name)
                elif isinstance(argument, torch.Tensor):
                    assert argument.is_meta, name


def assert_descriptor(descriptor, name):
    size = descriptor.base.element_size()
    assert len(descriptor.shape) <= 5, name
    assert descriptor.strides[-1] == 1, name
    assert all(step * size % 16 == 0 for step in descriptor.strides[:-1]), name
    assert all(0 < step <= 256 for step in descriptor.block_shape), name
    assert descriptor.block_shape[-1] * size >= 16, name
    last = sum((n - 1) * step for n, step in zip(descriptor.shape, descriptor.strides, strict=True))
    held = sum((n - 1) * step for n, step in zip(descriptor.base.shape, descriptor.base.stride(), strict=True))
    assert last <= held, name  # it reads nothing beyond the tensor


def geometry(batch, extent, in_extent=None):
    flat = (1, 1, 1)
    return Geometry(batch, 1, 16, 16, in_extent or extent, extent, (1, 3, 3), flat, (0, 1, 1), flat)


EXTENTS = [(1, rows, columns) for rows, columns in itertools.product((1, 2, 3, 6, 7, 8, 14, 28, 33, 56), repeat=2)]


@pytest.mark.parametrize("squares", SQUARES)
@pytest.mark.parametrize("places", [16, 64, 128, 256])
def test_boxes_cover_and_waste_least(places, squares):
    for extent, batch in itertools.product(EXTENTS, (1, 3, 256)):
        in_extent = (1, extent[1] + 2, max(1, extent[2] - 2))
        box = box_of(places, geometry(batch, extent, in_extent), extent, squares)
        least = [1, 1]
        if squares in ("rows", "images"):
            least[1] = max(extent[2], in_extent[2])
        if squares == "images":
            least[0] = max(extent[1], in_extent[1])
        least = [1 << (n - 1).bit_length() for n in least]
        if box is None:
            assert math.prod(least) > places
            continue
        assert math.prod(box) == places
        assert all(n & (n - 1) == 0 for n in box)
        assert (box[1] >= least[0], box[2] >= least[1]) == (True, True)
        assert all(n < 2 * max(most, low) for n, most, low in zip(box[1:], extent[1:], least, strict=True))
        counts = tiles_of(batch, extent, box)
        assert all(count * n >= size for count, n, size in zip(counts, box, (batch, *extent[1:]), strict=True))
        assert all((count - 1) * n < size for count, n, size in zip(counts, box, (batch, *extent[1:]), strict=True))


@pytest.mark.parametrize("size", [56, 28, 14, 7, 8, 4, 2])
def test_boxes_of_common_images_waste_nothing(size):
    box = box_of(128, geometry(128, (1, size, size)), (1, size, size), "plane")
    assert size % box[1] == size % box[2] == 128 % box[0] == 0


def test_every_batch_has_a_class_that_stands_for_it():
    classes = [batch_class(batch) for batch in range(1, 2000)]
    assert classes == sorted(classes)
    assert all(batch_class(found) == found for found in classes)
    assert all(found >= min(batch, classes[-1]) for batch, found in enumerate(classes, 1))
    assert len(set(classes)) <= 6
    assert len(set(classes[128:])) == 1


def test_boxes_are_linear_where_their_places_follow_each_other():
    images = 4
    for rows, columns in itertools.product(range(1, 9), repeat=2):
        places = torch.arange(images * rows * columns).reshape(images, rows, columns)
        for box in itertools.product((1, 2, 4), (1, 2, 4, 8), (1, 2, 4, 8)):
            if box[1] > rows or box[2] > columns or rows % box[1] or columns % box[2]:
                assert not is_linear(box, (1, rows, columns))
                continue
            split = places.reshape(images // box[0], box[0], rows // box[1], box[1], columns // box[2], box[2])
            in_order = split.permute(0, 2, 4, 1, 3, 5).flatten().equal(places.flatten())
            assert not is_linear(box, (1, rows, columns)) or in_order, (box, rows, columns)


@pytest.mark.parametrize("name", problems.STRIDED)
def test_strides_address_every_element_or_are_none(name):
    x = problems.STRIDED[name]()
    found = strides_of(x)
    offsets = torch.arange(x.untyped_storage().size() // x.element_size())
    offsets = offsets.as_strided(x.shape, x.stride(), x.storage_offset()).flatten(2) - x.storage_offset()
    steps = offsets[0, 0].diff().unique()
    assert (found is None) == (len(steps) > 1)
    if found is not None:
        image, channel, pixel = (torch.arange(n) * step for n, step in zip(offsets.shape, found, strict=True))
        assert torch.equal(image[:, None, None] + channel[:, None] + pixel, offsets)


def index_of(x, w=None):
    w = torch.empty(1, x.shape[1], 3, 3, device="meta") if w is None else w
    return Problem(x, w, SPEC, H200).index


def test_offsets_are_64_bits_wide_where_32_do_not_reach():
    half = 2**15
    assert index_of(torch.empty(1, 1, half, half, device="meta")) == tl.int32
    assert index_of(torch.empty(2, 1, half, half, device="meta")) == tl.int64
    whole = torch.empty(4, 2, half, half // 2, device="meta")
    for format in (torch.contiguous_format, torch.channels_last):
        view = whole.contiguous(memory_format=format)[:, :1, :16]
        assert view.numel() < view.stride(0) < 2**31  # both fit 32 bits, but the last image's offset does not
        assert index_of(view) == tl.int64
    wide = torch.empty(32, 1, 3, 3, device="meta")
    assert index_of(torch.empty(1, 1, half // 2, half, device="meta"), wide) == tl.int64  # of the output


@pytest.mark.parametrize("asked", [0, 1, 2, 7, 1000])
def test_splits_are_no_more_than_a_sum_can_bear(asked):
    problem = Problem(*LAYERS[1].operands(torch.bfloat16, "meta")[:2], LAYERS[1].spec, H200)
    for programs, steps in itertools.product((1, 60, 132, 5000), (1, 3, 8, 4096)):
        splits = problem.splits(Tile("gather", splits=asked), programs, steps)
        assert 1 <= splits <= max(1, steps)
        assert asked == 0 or splits <= asked
        if asked == 0:
            assert splits * programs <= max(programs, H200.processors * limits.resident(Tile("gather")))
