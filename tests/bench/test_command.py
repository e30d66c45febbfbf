"""`ccn bench`, from its arguments to the table; and the processes that measure."""

import json
import sys

import pytest
import torch

from ccn_kernels import cli
from ccn_kernels.bench import jobs, work
from ccn_kernels.bench.record import Record
from ccn_kernels.bench.settings import Settings

DEVICE = ["--device", "cpu", "--threads", "1"]
FEW = ["--suites", "tiny", "--workloads", "16-16", "--passes", "forward", "--providers", "conv,ccn",
       "--backends", "reference", "--rounds", "2"]  # fmt: skip


def refused(capsys, *arguments):
    assert cli.main(["bench", *DEVICE, *arguments]) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--suites", "kernel-nots"], "--suites: there is no kernel-nots; there are kernel-notes, vgg11"),
        (["--providers", "conv,ccn_cuda"], "--providers: there is no ccn_cuda; there are conv, "),
        (["--providers", "conv,cudnn"], "--providers: there is no cudnn; there are conv, "),
        (["--backends", "fast"], "--backends: there is no fast; there are fastest, reference"),
        (["--passes", "forwards"], "--passes: there is no forwards"),
        (["--dtypes", "fp32"], "--dtypes: there is no fp32; there are float32, tf32"),
        (["--dtypes", "tf32"], "--dtypes tf32: a CPU has none"),
        (["--formats", "nchw"], "--formats: there is no nchw"),
        (["--workloads", "("], "--workloads must be a regular expression"),
        (["--workloads", "none of them"], "--workloads 'none of them' matches none; there are 3-64@32"),
        (["--rounds", "1"], "--rounds must be at least 2, got 1"),
        (["--batch", "0"], "--batch must be at least 1, got 0"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--batch-scale", "-1"], "--batch-scale must be positive"),
        (["--device", "tpu"], "--device must be cpu or cuda, got 'tpu'"),
    ],
)
def test_bad_arguments_are_named(tmp_path, capsys, arguments, said):
    assert said in refused(capsys, *arguments, "--out", str(tmp_path / "record.json"))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named(tmp_path, capsys):
    assert "--device cuda: PyTorch sees no CUDA GPU" in refused(capsys, "--device", "cuda")


def test_another_file_is_named_and_left_alone(tmp_path, capsys):
    path = tmp_path / "notes.json"
    path.write_text("{}")
    assert "notes.json is no record" in refused(capsys, *FEW, "--out", str(path))
    assert path.read_text() == "{}"


def test_the_command_measures_and_prints_a_table(tmp_path, capfd):
    """In a process of its own, whose memory and threads are steady."""
    path = tmp_path / "record.json"
    assert cli.main(["bench", *DEVICE, *FEW, "--out", str(path)]) == 0
    printed = capfd.readouterr().out
    assert "| tiny    | 16-16@4" in printed
    assert "ccn / conv" in printed
    assert str(path) in printed
    record = Record.load(path)
    assert [row["failure"] for row in record.rows] == [None] * 5
    assert "MALLOC_MMAP_THRESHOLD_" in record.environment["malloc"]
    assert record.environment["ceilings"]["flop_per_s"]["float32"] > 1e6
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def process(settings, monkeypatch):
    """Runs settings by a process into which a replacement of a provider's calls is planted."""

    def run(planted, **options):
        chosen = settings(backends=("reference",), **options)
        script = f"import os, sys\nfrom ccn_kernels.bench import floor, providers, work\n{planted}\n"
        script += f"work.add_ceilings = lambda record, *_: record.environment.update(ceilings={RATES})\n"
        script += "sys.exit(work.main(sys.argv[1]))"
        monkeypatch.setattr(work, "command", lambda passed: [sys.executable, "-c", script, passed.to_json()])
        return chosen, lambda: work.run(chosen)

    return run


RATES = {"bytes_per_s": 1e10, "flop_per_s": {"float32": 1e11}}


def test_a_crash_is_a_row_and_another_process_does_the_rest(process):
    _, run = process(
        "providers.DIRECT['conv_nobias'] = lambda *_: os.abort()", providers=("conv", "conv_nobias", "ccn")
    )
    rows = run().rows
    (dead,) = [row for row in rows if row["provider"] == "conv_nobias"]
    assert dead["failure"].startswith("its process died: it crashed or hung (exit status -6)")
    assert dead["median_us"] is None
    assert all(row["median_us"] for row in rows if row is not dead)
    assert len(rows) == 6


def test_a_lost_context_names_its_reason(process):
    _, run = process(
        "from ccn_kernels.bench import clock\n"
        "def broken(*_): raise RuntimeError('illegal address')\n"
        "providers.DIRECT['conv_nobias'] = broken\n"
        "clock.HostClock.is_lost = lambda self: True",
        providers=("conv_nobias", "ccn"),
    )
    (dead,) = [row for row in run().rows if row["provider"] == "conv_nobias"]
    assert "the CUDA context is lost: RuntimeError: illegal address" in dead["failure"]


def test_a_process_that_fails_at_nothing_in_particular_is_an_error(process):
    _, run = process("sys.exit(7)")
    with pytest.raises(RuntimeError, match="the measuring process ended with 7"):
        run()


def test_ctrl_c_keeps_what_was_measured(process):
    chosen, run = process(
        "from ccn_kernels.bench.record import Record\nput = Record.put\n"
        "def interrupted(self, rows):\n    put(self, rows)\n    raise KeyboardInterrupt\nRecord.put = interrupted"
    )
    with pytest.raises(KeyboardInterrupt):
        run()
    assert len(json.loads(chosen.out.read_text())["rows"]) == 5


def test_settings_reach_the_process_whole(tmp_path):
    settings = Settings(tmp_path / "record.json", "cpu", ("tiny", "mnist"), batch=3, budget=1.5, threads=1)
    assert Settings.from_json(settings.to_json()) == settings
    assert Settings.from_json(Settings(tmp_path, "cpu").to_json()).budget == float("inf")


def test_jobs_of_a_suite(settings):
    found = jobs.jobs(
        settings(suites=("mnist",), workloads="", formats=("channels_last", "contiguous"), batch_scale=0.5)
    )
    assert {job.work.batch for job in found} == {64}
    formats = {
        job.work.rank: {other.memory_format for other in found if other.work.rank == job.work.rank} for job in found
    }
    assert formats == {2: {"channels_last", "contiguous"}, 0: {"contiguous"}}
    assert len(found) == 4 * 2 + 3
    assert {job.work.batch for job in jobs.jobs(settings(suites=("mnist",), workloads="", batch=7))} == {7}
