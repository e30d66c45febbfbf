"""The file: whole at all times, of one device and one state of the sources."""

import json

import pytest

from ccn_kernels.bench import record as records
from ccn_kernels.bench.record import ROW, Record

HERE = {"device": "a CPU", "sources": "abc"}


def row_of(**values):
    return {**dict.fromkeys(ROW), "workload": "x", **values}


def test_rows_take_a_line_each_and_the_file_round_trips(tmp_path):
    path = tmp_path / "deep" / "record.json"
    record = Record(path, HERE)
    record.put([row_of(provider="conv", median_us=1.5), row_of(provider="ccn")])
    lines = path.read_text().splitlines()
    assert [json.loads(line.rstrip(","))["provider"] for line in lines if '"provider"' in line] == ["conv", "ccn"]
    assert Record.load(path).rows == record.rows
    assert Record.load(path).environment == HERE


def test_an_empty_record_is_valid(tmp_path):
    Record(tmp_path / "record.json", HERE).save()
    assert Record.load(tmp_path / "record.json").rows == []


def test_what_is_measured_again_is_replaced_in_its_place(tmp_path):
    record = Record(tmp_path / "record.json", HERE)
    record.put([row_of(provider="conv"), row_of(provider="ccn")])
    record.put([row_of(provider="conv", median_us=2.0), row_of(provider="ccn", variant="relu")])
    assert [(row["provider"], row["variant"], row["median_us"]) for row in record.rows] == [
        ("conv", None, 2.0), ("ccn", None, None), ("ccn", "relu", None),
    ]  # fmt: skip


def test_it_is_gone_on_with_by_the_same_sources(tmp_path):
    path = tmp_path / "record.json"
    Record(path, {**HERE, "ceilings": 1}).put([row_of()])
    resumed = Record.resume(path, {**HERE, "date": "today"})
    assert len(resumed.rows) == 1
    assert resumed.environment == {**HERE, "ceilings": 1, "date": "today"}


def test_rows_of_other_sources_are_kept_beside_it(tmp_path, capsys):
    path = tmp_path / "record.json"
    Record(path, HERE).put([row_of()])
    assert Record.resume(path, {**HERE, "sources": "def"}).rows == []
    assert len(Record.load(tmp_path / "record.old.json").rows) == 1
    assert "record.old.json" in capsys.readouterr().err


def test_another_device_s_record_is_refused(tmp_path):
    path = tmp_path / "record.json"
    Record(path, HERE).save()
    with pytest.raises(ValueError, match=r"record\.json holds measurements of a CPU, this is a GPU.*--out"):
        Record.resume(path, {**HERE, "device": "a GPU"})


@pytest.mark.parametrize("content", ["[]", '{"rows": []}', "null"])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"other\.json is"):
        Record.resume(path, HERE)
    assert path.read_text() == content


def test_the_environment_names_what_was_measured():
    found = records.environment("cpu", 2, malloc="x")
    assert found.keys() >= {"device", "driver", "torch", "triton", "cuda", "date", "commit", "sources", "python",
                            "ccn_kernels", "threads", "capability", "malloc"}  # fmt: skip
    assert found["device"]


def test_the_fingerprint_follows_what_kernels_are_made_of(tmp_path, monkeypatch):
    for name in ("a.py", "lib.so", "bench/b.py", "backends/triton/configs/t.json", "data.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    monkeypatch.setattr(records, "PACKAGE", tmp_path)
    seen = []
    for name in ("a.py", "lib.so", "backends/triton/configs/t.json", "bench/b.py", "data.json"):
        before = records.fingerprint()
        (tmp_path / name).write_text("2")
        seen.append(records.fingerprint() != before)
    assert seen == [True, True, True, False, False]


def test_reasons_are_short_and_name_no_path_of_this_machine():
    text = records.brief(RuntimeError(f"{records.ROOT}/x " + "y" * 2000))
    assert len(text) < 700
    assert str(records.ROOT) not in text
