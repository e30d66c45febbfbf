"""What lands in the record: a row for everything, times only for what is right, and nothing twice."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch

from ccn_kernels.bench import measure, providers, work
from ccn_kernels.bench.providers import Entrant
from ccn_kernels.bench.record import ROW, Record


def row_of(record, entrant):
    (row,) = [row for row in record.rows if work.who(row) == entrant]
    return row


@pytest.fixture
def backend(monkeypatch):
    """Ours is the reference, so that nothing need be compiled."""
    monkeypatch.setenv("CCN_BACKEND", "reference")
    return Entrant("ccn", None, "reference")


@pytest.fixture
def planted(monkeypatch):
    """Replaces what a provider's calls are made by."""

    def plant(provider, make):
        monkeypatch.setitem(providers.DIRECT, provider, make)

    return plant


def test_every_contender_has_a_whole_row(settings, worked, backend):
    record = worked(settings(providers=("conv", "conv_nobias", "two_branch", "ccn"), passes=("forward", "training")))
    variants = {"conv": {None, "again", "relu"}, "conv_nobias": {None}, "two_branch": {"ones", "pool"},
                "ccn": {None, "relu"}}  # fmt: skip
    for which in ("forward", "training"):
        rows = [row for row in record.rows if row["pass"] == which]
        assert {name: {r["variant"] for r in rows if r["provider"] == name} for name in variants} == variants
    for row in record.rows:
        assert tuple(row) == ROW
        assert row["failure"] is None
        assert 0 < row["p20_us"] <= row["median_us"] <= row["p80_us"]
        assert row["relative_error"] < 1e-5
        assert row["peak_mb"] > 0
        assert row["share_of_floor"] == pytest.approx(row["floor_us"] / row["median_us"], abs=1e-4)
    assert {row["backend"] for row in record.rows} == {None, backend.backend}


def test_the_file_is_valid_after_every_job_and_after_an_interrupt(settings, worked, backend, monkeypatch):
    options, seen = settings(workloads=""), []
    put = Record.put

    def interrupted(record, rows):
        put(record, rows)
        seen.append(len(json.loads(options.out.read_text())["rows"]))
        if len(seen) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Record, "put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            worked(options)
    assert seen == [5, 10]
    assert len(Record.load(options.out).rows) == 10
    assert not work.word_of(options).exists()

    before = Record.load(options.out).rows
    assert worked(options).rows[:10] == before  # those are not measured again
    assert len(Record.load(options.out).rows) == 15


def test_a_job_that_lacks_a_contender_is_measured_as_a_whole(settings, worked, backend, monkeypatch):
    """So that all its ratios come from one interleaved run."""
    worked(settings())
    measured = []
    monkeypatch.setattr(work, "measure", lambda rivals, *args: measured.extend(rivals) or [])
    worked(settings())
    assert measured == []
    worked(settings(providers=("two_branch",)))
    assert [entrant.provider for _, entrant in measured] == ["two_branch"] * 2 + ["conv"] * 3 + ["ccn"] * 2


def test_memory_formats_of_a_pass_take_turns_with_each_other(settings, worked, monkeypatch):
    measured = []
    monkeypatch.setattr(work, "measure", lambda rivals, *args: measured.append(rivals) or [])
    worked(settings(formats=("channels_last", "contiguous"), passes=("forward", "training")))
    assert [{(job.which, job.memory_format) for job, _ in rivals} for rivals in measured] == [
        {(which, format) for format in ("channels_last", "contiguous")} for which in ("forward", "training")
    ]


def test_a_wrong_provider_shows_no_time(settings, worked, planted, backend):
    def off(entrant, case, which):
        return lambda: {"output": 1.12 * case.expected(providers.family_of(entrant))["output"]}

    planted("ccn", off)
    record = worked(settings())
    row = row_of(record, backend)
    assert row["failure"] == "output is wrong by 0.12 (at most 1e-05)"
    assert row["relative_error"] == pytest.approx(0.12)
    assert row["median_us"] is row["p20_us"] is row["share_of_floor"] is row["peak_mb"] is None
    assert row_of(record, Entrant("conv"))["median_us"] > 0


def test_nan_is_wrong(settings, worked, planted, backend):
    planted("ccn", lambda entrant, case, which: lambda: {"output": case.expected(providers.family_of(entrant))["output"]
                                                         * float("nan")})  # fmt: skip
    row = row_of(worked(settings()), backend)
    assert "wrong by nan" in row["failure"]
    assert row["relative_error"] is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("no such kernel"), "RuntimeError: no such kernel"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), "out of memory: "),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9"), "out of memory: "),
    ],
)
def test_what_fails_is_a_row_with_the_reason_and_the_rest_goes_on(settings, worked, planted, backend, error, said):
    def broken(entrant, case, which):
        raise error

    planted("conv", broken)
    record = worked(settings())
    assert row_of(record, Entrant("conv"))["failure"].startswith(said)
    assert row_of(record, backend)["median_us"] > 0


def test_what_fails_while_it_is_timed_is_a_row_as_well(settings, worked, planted, backend):
    """The gate has let it through: the others are timed anew without it."""

    def tired(entrant, case, which):
        left = iter(range(3))

        def call():
            next(left)
            return case.expected(providers.family_of(entrant))

        return call

    planted("conv_nobias", tired)
    record = worked(settings(providers=("conv", "conv_nobias", "ccn")))
    assert row_of(record, Entrant("conv_nobias"))["failure"].startswith("StopIteration")
    assert row_of(record, backend)["median_us"] > 0


def test_a_backend_that_cannot_run_is_a_row_with_its_reason(settings, worked, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    record = worked(settings(providers=("ccn", "cudnn_epilogue", "cudnn_frontend"), backends=("triton",)))
    for row in record.rows:
        assert "GPU" in row["failure"] or "triton" in row["failure"]
        assert row["median_us"] is None


def test_a_row_that_took_its_process_with_it_is_not_tried_again(settings, worked, backend):
    options = settings()
    record = worked(options)
    dead = {**row_of(record, Entrant("conv")), "failure": f"{work.DEAD}it crashed or hung (exit status -11)"}
    record.rows = [dead]
    record.save()
    again = worked(options)
    assert row_of(again, Entrant("conv"))["failure"].startswith(work.DEAD)
    assert row_of(again, backend)["median_us"] > 0


def test_a_spent_budget_leaves_jobs_for_the_next_call(settings, worked, backend, monkeypatch):
    with monkeypatch.context() as context:
        context.setattr(work, "time", SimpleNamespace(monotonic=itertools.count().__next__))  # a job takes a second
        assert len(worked(settings(workloads="", budget=3.5)).rows) == 5
    assert len(worked(settings(workloads="")).rows) == 15


def test_networks_count_images_and_have_no_floor(settings, worked, backend):
    record = worked(settings(workloads="", passes=("forward", "training", "backward"), suites=("tiny-networks",)))
    assert [(row["pass"], work.who(row)) for row in record.rows] == [
        (which, who) for which in ("forward", "training")
        for who in (Entrant("conv"), backend, backend._replace(variant="relu apart"))
    ]  # fmt: skip
    for row in record.rows:
        assert row["images_per_s"] == pytest.approx(2e6 / row["median_us"], rel=1e-3)
        assert row["floor_us"] is row["share_of_floor"] is None
        assert row["peak_mb"] > 0


def test_take_turns_is_told_who_is_at_work(settings, worked, backend, monkeypatch):
    """The watch names the rows to blame: one while it is checked, all while they take turns."""
    steps = []
    step = measure.Watch.step
    monkeypatch.setattr(measure.Watch, "step", lambda self, rows: steps.append(len(list(rows))) or step(self, []))
    worked(settings())
    assert steps == [1, 1, 1, 1, 1, 5]
