"""Two processes: a real run of a small model, and what happens when one fails or the user stops them."""

import pytest

from ccn_kernels.bench import ddp


def test_two_processes_give_a_row_a_model(models):
    rows = ddp.run(2, target=models("small"), input="2x3x4x4", device="cpu", rounds=2)
    assert [row["provider"] for row in rows] == ["conv", "ccn"]
    for row in rows:
        assert (row["suite"], row["processes"], row["batch"], row["failure"]) == ("ddp", 2, 2, None)
        assert row["images_per_s"] == pytest.approx(4e6 / row["median_us"])
        assert row["collective_share"] < 1
    assert "2 processes of 2 images each" in ddp.describe(rows)


def test_a_process_that_fails_is_an_error_with_its_message(models):
    with pytest.raises(RuntimeError, match=r"process [01]: ValueError: --mine: .*broken fails: KeyError: 'no such"):
        ddp.run(2, target=models("broken"), input="2x3x4x4", device="cpu", rounds=2)


def test_one_process_is_refused():
    with pytest.raises(ValueError, match="--processes must be at least 2, got 1"):
        ddp.run(1, device="cpu")


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
        ddp.run(2, device="cpu")
    assert Interrupted.last.calls == ["wait", "terminate", "wait"]
