"""`ccn tune`: what it measures, what it writes, and how it goes on."""

import dataclasses
import json

import pytest
from calls import DEVICE

from ccn_kernels.backends import triton
from ccn_kernels.backends.triton import config, heuristics, tune
from ccn_kernels.backends.triton.tiles import HYBRID, Tile
from ccn_kernels.workloads import Layer

LAYER = Layer("tiny", 2, 8, 16, 4)
SMALL = Tile("gather", 32, 16, 16, warps=4, stages=2)


@pytest.fixture
def measured(monkeypatch):
    """Two tiles a pass, the first of them measured as the faster one; the calls that were measured."""
    calls = []

    def measure(call):
        call()
        calls.append(call)
        return float(len(calls))

    monkeypatch.setattr(heuristics, "candidates", lambda request, device: [SMALL, HYBRID])
    return measure, calls


def lines(out, measure, dtype="tf32", **settings):
    return list(tune.tune([LAYER], [dtype], out, triton.device(0), measure=measure, place=str(DEVICE), **settings))


def test_the_fastest_tile_is_written_and_then_chosen(tmp_path, measured, monkeypatch):
    out = tmp_path / "tuned.json"
    assert [line.split(":")[0] for line in lines(out, measured[0])] == [f"tiny tf32 {kind}" for kind in tune.KINDS]
    entries = json.loads(out.read_text())["entries"]
    assert [entry["tile"] for entry in entries] == [dataclasses.asdict(SMALL)] * 3
    assert [entry["us"] for entry in entries] == [1.0, 3.0, 5.0]
    assert list(tmp_path.iterdir()) == [out]
    monkeypatch.setenv(config.USER_TABLE, str(out))
    config.table.cache_clear()
    found = config.table(triton.device(0).name)
    config.table.cache_clear()
    assert {kind: list(tiles.values()) for kind, tiles in found.items()} == {kind: [SMALL] for kind in tune.KINDS}


def test_fp16_is_tuned_where_cudnn_would_overflow(tmp_path, measured, monkeypatch):
    """It sums past fp16's range, so it is no yardstick there, nor a candidate."""
    monkeypatch.setattr(heuristics, "candidates", lambda request, device: [SMALL])
    lines(tmp_path / "tuned.json", measured[0], "float16")
    entries = json.loads((tmp_path / "tuned.json").read_text())["entries"]
    assert [entry["kind"] for entry in entries] == list(tune.KINDS)


def test_what_was_measured_is_not_measured_again(tmp_path, measured):
    out = tmp_path / "tuned.json"
    measure, calls = measured
    lines(out, measure)
    assert len(calls) == 6
    assert all(line.endswith("measured before") for line in lines(out, measure))
    assert len(calls) == 6
    lines(out, measure, again=True)
    assert len(calls) == 12


def test_a_wrong_tile_is_no_candidate(tmp_path, measured, monkeypatch):
    forward = tune.Forward.run

    def wrong(self):
        results = forward(self)
        if self.problem.tile("forward") == SMALL:
            results[0].mul_(1.1)
        return results

    monkeypatch.setattr(tune.Forward, "run", wrong)
    lines(tmp_path / "tuned.json", measured[0])
    first = json.loads((tmp_path / "tuned.json").read_text())["entries"][0]
    assert (first["kind"], first["tile"]["kernel"], first["candidates"]) == ("forward", "hybrid", 1)


def test_another_file_is_not_overwritten(tmp_path, measured):
    out = tmp_path / "notes.json"
    out.write_text('{"device": "another GPU", "entries": []}')
    with pytest.raises(ValueError, match=r"notes.json is not a table of this GPU"):
        lines(out, measured[0])
    assert json.loads(out.read_text())["device"] == "another GPU"
