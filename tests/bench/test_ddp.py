"""Two processes: a real run of a small model, and what happens when one fails or the user stops them."""

import pytest
from user_models import written

from ccn_kernels.bench import ddp
from ccn_kernels.bench.record import ROW, Record, environment


@pytest.fixture
def models(tmp_path):
    return written(tmp_path)


def test_two_processes_give_a_row_a_model(models):
    rows = ddp.run(2, target=models("small"), input="2x3x4x4", rounds=2)
    assert [row["provider"] for row in rows] == ["conv", "ccn"]
    for row in rows:
        assert (row["suite"], row["processes"], row["batch"], row["failure"]) == ("ddp", 2, 2, None)
        assert row["images_per_s"] == pytest.approx(4e6 / row["median_us"])
        assert row["collective_share"] < 1
        assert set(ROW) <= set(row)
    assert (rows[0]["workload"], rows[0]["backend"], rows[1]["backend"]) == ("models.py:small", None, "cpu")
    assert "2 processes of 2 images each" in ddp.describe(rows)


def row(provider, **others):
    return dict.fromkeys(ROW) | {"suite": "ddp", "provider": provider, "median_us": 1.0} | others


def test_rows_join_the_devices_record(tmp_path):
    path = tmp_path / "record.json"
    record = Record(path, environment("cpu", 7), [row("conv", suite="vgg11")])
    record.save()
    for median in (2.0, 3.0):  # the second run's rows replace the first one's
        ddp.keep([row("conv", median_us=median), row("ccn", median_us=median)], path, "cpu")
    kept = Record.load(path)
    assert kept.environment["threads"] == 7
    assert [(row["suite"], row["median_us"]) for row in kept.rows] == [("vgg11", 1.0), ("ddp", 3.0), ("ddp", 3.0)]


def test_a_process_that_fails_is_an_error_with_its_message(models):
    with pytest.raises(RuntimeError, match=r"process [01]: ValueError: --mine: .*broken fails: KeyError: 'no such"):
        ddp.run(2, target=models("broken"), input="2x3x4x4", rounds=2)


def test_one_process_is_refused():
    with pytest.raises(ValueError, match="--processes must be at least 2, got 1"):
        ddp.run(1)


class Interrupted:
    """A launcher whose wait the user's Ctrl-C ends."""

    def __init__(self, *_, **__):
        self.calls = []
        Interrupted.last = self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def wait(self):
        self.calls.append("wait")
        if self.calls == ["wait"]:
            raise KeyboardInterrupt

    def terminate(self):
        self.calls.append("terminate")


def test_an_interrupt_stops_the_processes(monkeypatch):
    monkeypatch.setattr(ddp.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        ddp.run(2)
    assert Interrupted.last.calls == ["wait", "terminate", "wait"]
