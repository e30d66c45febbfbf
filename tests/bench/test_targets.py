"""The GPU targets, judged from planted rows."""

import importlib
from pathlib import Path

import pytest

from ccn_kernels.bench.record import ROW

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def judge(monkeypatch, tmp_path):
    """The table's lines by target: goal, measured, met."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    targets, record = (importlib.import_module(f"gpu_parts.{name}") for name in ("targets", "record"))

    def run(rows, **parts):
        diagnostics = record.Record(tmp_path / "none.json")
        diagnostics.data["parts"] = {name: {"rows": found} for name, found in parts.items()}
        lines = targets.targets(rows, diagnostics).splitlines()[2:]
        return {line[0]: line[1:] for line in ([cell.strip() for cell in text.strip("|").split("|")] for text in lines)}

    return run


def row_of(provider, median, variant=None, **values):
    common = {"suite": "kernel-notes", "workload": "64-128@16", "pass": "forward", "timing": "graph",
              "dtype": "bfloat16", "memory_format": "channels_last", "share_of_floor": 0.5}  # fmt: skip
    return {**dict.fromkeys(ROW), **common, "provider": provider, "variant": variant, "median_us": median, **values}


def test_nothing_measured_meets_nothing(judge):
    assert {tuple(line[1:]) for line in judge([]).values()} == {("not measured", "")}


def test_speeds_are_geometric_means_with_a_worst(judge):
    first = {"workload": "3-64@32"}
    rows = [
        row_of("conv", 10.0), row_of("ccn", 5.0), row_of("conv", 10.0, **first), row_of("ccn", 20.0, **first),
        row_of("ccn", 1.0, dtype="float16"), row_of("ccn", 1.0, timing="eager"),
        row_of("conv_nobias", None, failure="no"), row_of("two_branch", 30.0, "ones"),
        row_of("two_branch", 25.0, "pool"),
    ]  # fmt: skip
    found = judge(rows)
    assert found["forward / nn.Conv2d(bias=True)"] == ["<= 0.85, none above 1.2", "1.000 (worst 2.000 of 2)", "no"]
    assert found["forward / convolution without bias"][1] == "not measured"
    assert found["two-branch eager / ours, forward, graph"] == [">= 4.0", "5.000 (worst 5.000 of 1)", "yes"]


def test_the_cuda_kernels_are_judged_on_every_shape(judge):
    first = {"workload": "3-64@32"}
    rows = [
        row_of("conv", 10.0), row_of("ccn", 10.0), row_of("ccn_cuda", 12.0), row_of("two_branch", 40.0, "ones"),
        row_of("conv", 10.0, **first), row_of("ccn", 5.0, **first), row_of("ccn_cuda", 8.0, **first),
        row_of("ccn_cuda", 20.0, suite="linear", timing="eager", dtype="float16"),
        row_of("two_branch", 10.0, suite="linear", timing="eager", dtype="float16"),
    ]  # fmt: skip
    found = judge(rows)
    assert found["ccn_cuda / ccn, forward"] == ["<= 1.5, none above 1.5", "1.386 (worst 1.600 of 2)", "no"]
    assert found["ccn_cuda / nn.Conv2d(bias=True)"][1:] == ["0.980 (worst 1.200 of 2)", "yes"]
    assert found["ccn_cuda / two-branch eager, forward, everywhere"][1:] == ["0.775 (worst 2.000 of 2)", "no"]
    assert found["ccn_cuda / ccn, training"][1] == "not measured"


def test_shares_of_the_floor_go_by_channels(judge):
    found = judge([row_of("ccn", 1.0, share_of_floor=0.56), row_of("ccn", 1.0, workload="3-64@32", share_of_floor=0.7)])
    assert found["percent of the floor, Cout = 128"][2] == "yes"
    assert found["percent of the floor, Cin = 3"] == [">= 80, none below 80", "70.000 (worst 70.000 of 1)", "no"]


def test_memory_host_and_squares(judge):
    step = {"suite": "networks", "workload": "vgg11", "pass": "training", "timing": "eager"}
    rows = [row_of("conv", 1.0, peak_mb=100.0, **step), row_of("ccn", 1.0, peak_mb=104.0, **step),
            row_of("ccn", 1.0, "relu apart", peak_mb=120.0, **step)]  # fmt: skip
    times = {"conv, F.conv2d": {"called": {"median": 10.0}}, "ours, compact_conv2d": {"called": {"median": 20.0}}}
    ways = {
        name: {"replayed": {"median": median}} for name, median in (("rows", 10.2), ("plane", 12.0), ("none", 10.0))
    }
    squares = {"default tiles": {"forward": "descriptor 128x128x64 w8 s4 rows"}, "providers": ways}
    found = judge(rows, host={"forward, no grad": {"providers": times}}, ablation={"x": squares})
    planes = {**squares, "default tiles": {"forward": "descriptor 128x128x64 w8 s4"}}
    assert judge([], ablation={"x": planes})["kernel / the same without squares"][1] == "1.200 (worst 1.200 of 1)"
    assert found["peak memory of a training step / plain"][1:] == ["1.040 (worst 1.040 of 1)", "yes"]
    assert found["the same, ReLU apart"][2] == "no"
    assert found["host time / F.conv2d, no grad"][2] == "no"
    assert found["kernel / the same without squares"][1:] == ["1.020 (worst 1.020 of 1)", "yes"]
