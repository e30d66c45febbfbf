"""The tables: ratios to the plain layer, each provider in its fastest form; and what failed."""

import sys

import pytest

from ccn_kernels.bench import tell
from ccn_kernels.bench.record import ROW


def row_of(provider, median, variant=None, **values):
    common = {"suite": "s", "workload": "w", "batch": 2, "pass": "forward", "dtype": "float32", "timing": "eager",
              "memory_format": "contiguous"}  # fmt: skip
    return {**dict.fromkeys(ROW), **common, "provider": provider, "variant": variant, "median_us": median, **values}


ROWS = [
    row_of("conv", 10.0), row_of("conv", 8.0, memory_format="channels_last"), row_of("conv", 1.0, "again"),
    row_of("two_branch", 24.0, "ones"), row_of("two_branch", 16.0, "pool"),
    row_of("ccn", 4.0, backend="cpu", share_of_floor=0.5), row_of("ccn", 1.0, "relu", backend="cpu"),
    row_of("conv", 1.0, workload="v"), row_of("ccn", 2.0, workload="v", backend="cpu"),
    row_of("cudnn_frontend", None, failure="no wheel"),
    row_of("cudnn_frontend", None, workload="v", failure="no wheel"),
]  # fmt: skip


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


@pytest.mark.parametrize("tabulated", [True, False])
def test_ratios_of_the_fastest(monkeypatch, tabulated):
    if not tabulated:
        monkeypatch.setitem(sys.modules, "tabulate", None)
    table = cells(tell.ratios(ROWS))
    assert table[0][-4:] == ["conv µs", "two_branch / conv", "ccn / conv", "ccn of floor"]
    assert [line[-4:] for line in table[2:]] == [
        ["8.00", "2.00", "0.50", "0.50"], ["1.00", "", "2.00", ""], ["", "2.00", "1.00", ""],
    ]  # fmt: skip
    assert table[-1][1] == "geometric mean"


def test_backends_are_told_apart_where_there_are_several():
    table = cells(tell.ratios([*ROWS, row_of("ccn", 12.0, backend="reference")]))
    assert table[0][-3:-1] == ["ccn cpu / conv", "ccn reference / conv"]


def test_failures_are_grouped_by_reason():
    assert tell.failures(ROWS) == "- cudnn_frontend, 2 rows (w forward ...): no wheel"


def test_networks_have_a_table_of_their_own():
    network = row_of("ccn", 5.0, "relu apart", backend="cpu", images_per_s=400.0, peak_mb=1.5)
    text = tell.summary([*ROWS, network])
    assert "ccn relu apart cpu" in text
    assert "400.00" in text
    assert len(text.split("\n\n")) == 3


def test_nothing_measured_is_no_table():
    assert tell.summary([]) == ""


def test_progress_without_a_bar(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with tell.progress(["a", "b"]) as shown:
        assert list(shown) == ["a", "b"]
    assert capsys.readouterr().err.splitlines() == ["[1/2] a", "[2/2] b"]
