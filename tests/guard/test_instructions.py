"""The guard's verdicts, on planted counts; `make guard` is what counts."""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("instructions", Path(__file__).parent / "instructions.py")
guard = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(guard)

RECORDED = {"g++ 12, avx2": {"layer: pass": 1000, "layer: other": 500}}


def counted(first, **others):
    return {"layer: pass": first, "layer: other": 500, **others}


@pytest.mark.parametrize(
    ("first", "key", "problems"),
    [
        (1030, "g++ 12, avx2", []),
        (1031, "g++ 12, avx2", ["layer: pass: 1031 instructions, +3.1% against 1000"]),
        (1240, "g++ 13, avx2", []),
        (1260, "g++ 13, avx2", ["layer: pass: 1260 instructions, +26.0% against 1000"]),
        (1000, "g++ 12, baseline", ["no counts are recorded for baseline"]),
    ],
)
def test_a_count_may_grow_by_so_much(first, key, problems):
    assert guard.compare(counted(first), key, RECORDED)[0] == problems


def test_another_compiler_is_named():
    notes = guard.compare(counted(1000), "g++ 13, avx2", RECORDED)[1]
    assert notes[0] == "this is g++ 13, avx2; compared with g++ 12, avx2, so up to 25% more is let pass"


def test_a_pass_that_comes_or_goes_is_a_problem():
    problems, _ = guard.compare({"layer: pass": 1000, "layer: new": 1}, "g++ 12, avx2", RECORDED)
    assert problems == ["layer: other: on record, but not counted", "layer: new: counted, but not on record"]


def test_fewer_instructions_are_no_problem_and_are_said():
    problems, notes = guard.compare(counted(900), "g++ 12, avx2", RECORDED)
    assert problems == []
    assert notes[-1].endswith("layer: pass")


def test_the_committed_counts_are_of_every_layer_in_both_formats():
    for counts in guard.read_json(guard.RECORD).values():
        layers = {name.split(":")[0] for name in counts}
        assert len(layers) == 18
        assert {name.removesuffix(" channels_last") + " contiguous" for name in layers if "last" in name} <= layers


def test_totals_are_read_from_callgrinds_file(tmp_path):
    dump = tmp_path / "out.1"
    dump.write_bytes(b"# callgrind format\ndesc: Trigger: \xff\n\nfn=(1) main\n0 12\n\ntotals: 4242\n")
    assert guard.total(dump) == 4242
