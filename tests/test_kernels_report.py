"""Offline compilation: `ccn kernels` says what the compiler makes of the Triton kernels, and what is wrong with it."""

import json

import pytest
import torch
import triton
import triton.language as tl
from gpu_problems import CLASSES, KINDS
from triton.tools.tensor_descriptor import TensorDescriptor

from ccn_kernels import cli
from ccn_kernels.backends.triton import config, offline, recorded
from ccn_kernels.backends.triton.forward_pass import Forward
from ccn_kernels.backends.triton.launch import Launch, Problem
from ccn_kernels.backends.triton.tiles import Device, Tile, batch_class
from ccn_kernels.spec import ConvSpec
from ccn_kernels.workloads import LAYERS, Layer

KEYS = {"kernel", "config", "registers", "spills", "shared_bytes", "wgmma", "mma", "bulk_copies", "serialized",
        "races"}  # fmt: skip
SOUND = {"kernel": "forward_descriptor", "config": "", "registers": 128, "spills": 0, "shared_bytes": 1000, "wgmma": 4,
         "mma": 0, "bulk_copies": 8, "serialized": False, "races": False}  # fmt: skip


@pytest.fixture
def one_layer(monkeypatch, tmp_path):
    monkeypatch.setattr(offline, "LAYERS", [Layer("small", 8, 64, 64, 8)])
    monkeypatch.setattr(config, "CONFIGS", tmp_path)


@pytest.mark.usefixtures("one_layer")
def test_json_has_a_row_a_kernel(capsys):
    assert cli.main(["kernels", "--arch", "sm_90", "--json", "--dtypes", "bfloat16"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["kernel"] for row in rows} == {
        "sum_of_squares", "forward_descriptor", "backward_prologue", "dgrad_descriptor", "wgrad_descriptor",
        "wgrad_reduce", "sum_shares", "forward_persistent",  # the last untried
    }  # fmt: skip
    for row in rows:
        assert row.keys() == KEYS
        assert 0 < row["registers"] <= 255
        descriptors = row["kernel"].endswith(("_descriptor", "_persistent"))
        assert (row["wgmma"] > 0, row["bulk_copies"] > 0) == (descriptors, descriptors)
        assert offline.faults(row, "sm_90") == []


@pytest.mark.usefixtures("one_layer")
def test_an_older_gpu_gets_pointers_and_plain_tensor_cores(capsys):
    assert cli.main(["kernels", "--arch", "sm_80", "--check", "--dtypes", "tf32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (forward,) = [line for line in lines if line.startswith("forward_gather tf32")]
    assert "wgmma=0" in forward
    assert "mma=0 " not in forward.replace("wgmma=0", "")


@pytest.mark.usefixtures("one_layer")
def test_check_fails_on_a_fault(monkeypatch, capsys):
    monkeypatch.setattr(offline, "report", lambda arch, dtypes: iter([SOUND, {**SOUND, "spills": 8}]))
    assert cli.main(["kernels", "--check"]) == 1
    assert "1 faults in 2 kernels for sm_90" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({}, []),
        ({"spills": 4}, ["spills 4 bytes"]),
        ({"serialized": True}, ["its asynchronous products run one by one"]),
        ({"races": True}, ["fills registers while asynchronous products are under way, which may still read them"]),
        ({"shared_bytes": 300000}, ["needs 300000 bytes of shared memory"]),
        ({"wgmma": 0}, ["has no wgmma"]),
        ({"wgmma": 0, "kernel": "forward_persistent"}, ["has no wgmma"]),
        ({"wgmma": 0, "kernel": "forward_gather"}, []),
    ],
)
def test_faults(change, complaint):
    assert offline.faults({**SOUND, **change}, "sm_90") == complaint


def test_spills_are_seen():
    """A tile that no heuristic chooses, since its end does not fit the registers."""
    launches = []
    x, w, bias, alpha = Layer("large", 64, 256, 128, 16).operands(torch.bfloat16, "meta")
    tile = Tile("descriptor", 256, 128, 64, warps=4, stages=3)
    problem = Problem(x, w, LAYERS[0].spec, Device("", 90, 132), launches.append, {"forward": tile})
    Forward(problem, bias, alpha, True).run()
    assert offline.compile_launch(launches[-1], 90).spills > 0


def test_an_unknown_architecture_is_named(capsys):
    assert cli.main(["kernels", "--arch", "sm_1"]) == 1
    assert "arch must be one of sm_75, sm_80" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a GPU, and here is one")
def test_tuning_needs_a_gpu(capsys):
    assert cli.main(["tune"]) == 1
    assert "cannot tune: PyTorch sees no CUDA GPU" in capsys.readouterr().err


@pytest.fixture
def on_record(tmp_path):
    recorded.save(tmp_path / "kernels.json", "sm_90", [SOUND, {**SOUND, "registers": 200}])
    return tmp_path / "kernels.json"


@pytest.mark.parametrize(
    ("registers", "change", "complaint"),
    [
        ((140, 220), {}, ""),
        ((128, 221), {}, "forward_descriptor  takes [128, 221] registers, [128, 200] on record"),
        ((141, 200), {}, "takes [141, 200] registers"),
        ((128,), {}, "is compiled 1 times, 2 on record"),
        ((128, 200), {"spills": 4}, "spills 4 bytes, 0 on record"),
        ((128, 200), {"wgmma": 0}, "has lost its wgmma"),
        ((128, 200), {"config": "other"}, "forward_descriptor other is not on record"),
    ],
)
def test_what_is_worse_than_on_record_is_a_fault(monkeypatch, capsys, on_record, registers, change, complaint):
    rows = [{**SOUND, **change, "registers": number} for number in registers]
    monkeypatch.setattr(offline, "report", lambda arch, dtypes: iter(rows))
    status = cli.main(["kernels", "--against", str(on_record)])
    message = capsys.readouterr().err
    assert status == bool(complaint)
    assert complaint in message
    assert ("--accept writes it" in message) == bool(complaint)
    assert cli.main(["kernels", "--against", str(on_record), "--accept"]) == 0
    assert cli.main(["kernels", "--against", str(on_record)]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "sm_80"], "kernels.json was recorded with arch sm_90, this is sm_80"),
        (["--against", "missing.json"], "missing.json is missing: --accept writes it"),
    ],
)
def test_only_equals_are_compared(capsys, on_record, arguments, message):
    assert cli.main(["kernels", "--against", str(on_record), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_another_triton_is_named(monkeypatch, capsys, on_record):
    monkeypatch.setattr(recorded.triton, "__version__", "2.0")
    assert cli.main(["kernels", "--against", str(on_record)]) == 1
    assert "this is 2.0" in capsys.readouterr().err


def test_accepting_needs_a_file(capsys):
    assert cli.main(["kernels", "--accept"]) == 1
    assert "--accept needs --against" in capsys.readouterr().err


@triton.jit
def sum_of_products(x, w, y, SQUARED: tl.constexpr):
    total, squares = tl.zeros((128, 64), tl.float32), tl.zeros((64,), tl.float32)
    for step in range(8):
        values = x.load([0, step * 64])
        total = tl.dot(w.load([0, step * 64]), tl.trans(values), total)
        if SQUARED:
            wide = values.to(tl.float32)
            squares += tl.sum(wide * wide, 1)
    tl.store(y + tl.arange(0, 128)[:, None] * 64 + tl.arange(0, 64)[None, :], total / (squares + 1)[None, :])


@pytest.mark.parametrize("squared", [False, True])
def test_a_loop_that_reads_what_products_still_read_is_a_fault(squared):
    """As this project's first kernels did: on an H200 up to 40 % of their results were wrong."""
    x, w = (torch.empty(rows, 512, dtype=torch.bfloat16, device="meta") for rows in (64, 128))
    y = torch.empty(128, 64, device="meta")
    descriptors = [TensorDescriptor(t, list(t.shape), [512, 1], [t.shape[0], 64]) for t in (x, w)]
    arguments = dict(zip(("x", "w", "y", "SQUARED"), (*descriptors, y, squared), strict=True))
    found = offline.compile_launch(Launch(sum_of_products, (1,), arguments), 90)
    assert found.wgmma > 0
    assert found.races == squared


@pytest.mark.parametrize(("outputs", "index"), [(500_000, tl.int32), (600_000, tl.int64)], ids=str)
def test_a_weight_of_more_than_2_to_the_31_elements_has_64_bit_offsets(outputs, index):
    x, w = (torch.empty(rows, 4100, dtype=torch.bfloat16, device="meta") for rows in (8, outputs))
    assert Problem(x, w, ConvSpec((), (), (), 1, 0.01, False), Device("", 90, 132)).index == index


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "tf32"])
@pytest.mark.parametrize("layer", KINDS, ids=lambda layer: layer.name)
@pytest.mark.parametrize("batches", CLASSES, ids=str)
def test_batches_of_a_class_are_launched_by_the_same_kernels(batches, layer, dtype):
    device = Device("", 90, offline.PROCESSORS)

    def kernels(batch):
        launches = offline.launches_of(layer._replace(batch=batch), dtype, device)
        return {offline.identity_of(launch, dtype) for launch in launches}

    first = kernels(batches[0])
    assert len({batch_class(batch) for batch in batches}) == 1
    for batch in batches[1:]:
        assert kernels(batch) <= first


@pytest.mark.parametrize(
    ("order", "early"),
    [("dot some load all", True), ("dot some all load", False), ("load dot some", True), ("load dot all", False)],
)
def test_products_are_under_way_until_all_are_waited_for(order, early):
    """What a loop around loops does, too: it is read as it is written, and as its next round finds it."""
    lines = {"dot": "%u = ttng.warp_group_dot %a, %b {isAsync = true}", "load": "%v = ttg.local_load %c",
             "some": "ttng.warp_group_dot_wait %u {pendings = 1 : i32}",
             "all": "ttng.warp_group_dot_wait %u {pendings = 0 : i32}"}  # fmt: skip
    body = "\n".join(f"    {lines[name]}" for name in order.split())
    assert offline._races(f"  %u = scf.for %i = %a to %b {{\n{body}\n  }}") == early
