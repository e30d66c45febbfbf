"""Offline compilation: `ccn kernels` says what the compiler makes of the Triton kernels, and what is wrong with it."""

import json

import pytest
import torch

from ccn_kernels import cli
from ccn_kernels.backends.triton import offline
from ccn_kernels.backends.triton.config import Device, Tile
from ccn_kernels.backends.triton.forward_pass import Forward
from ccn_kernels.backends.triton.launch import Problem
from ccn_kernels.workloads import LAYERS, Layer

KEYS = {"kernel", "config", "registers", "spills", "shared_bytes", "wgmma", "mma", "bulk_copies", "serialized"}
SOUND = {"kernel": "forward_descriptor", "config": "", "registers": 128, "spills": 0, "shared_bytes": 1000, "wgmma": 4,
         "mma": 0, "bulk_copies": 8, "serialized": False}  # fmt: skip


@pytest.fixture
def one_layer(monkeypatch):
    monkeypatch.setattr(offline, "LAYERS", [Layer("small", 8, 64, 64, 8)])


@pytest.mark.usefixtures("one_layer")
def test_json_has_a_row_a_kernel(capsys):
    assert cli.main(["kernels", "--arch", "sm_90", "--json", "--dtypes", "bfloat16"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["kernel"] for row in rows} == {
        "forward_descriptor", "backward_prologue", "dgrad_descriptor", "wgrad_descriptor", "wgrad_reduce"
    }  # fmt: skip
    for row in rows:
        assert row.keys() == KEYS
        assert 0 < row["registers"] <= 255
        descriptors = row["kernel"].endswith("_descriptor")
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
        ({"shared_bytes": 300000}, ["needs 300000 bytes of shared memory"]),
        ({"wgmma": 0}, ["has no wgmma"]),
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
    assert offline.compile_launch(launches[0], 90).spills > 0


def test_an_unknown_architecture_is_named(capsys):
    assert cli.main(["kernels", "--arch", "sm_1"]) == 1
    assert "arch must be one of sm_75, sm_80" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a GPU, and here is one")
def test_tuning_needs_a_gpu(capsys):
    assert cli.main(["tune"]) == 1
    assert "cannot tune: PyTorch sees no CUDA GPU" in capsys.readouterr().err
