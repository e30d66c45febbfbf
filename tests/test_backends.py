"""The choice of a backend: its order, who decides, and the reasons given when one cannot be had."""

import importlib
import json
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import ccn_kernels
from ccn_kernels import CompactConv2d, CompactLinear, backends, env_report
from ccn_kernels.backends import cpu, cuda, extension
from ccn_kernels.functional import compact_conv2d, compact_linear
from ccn_kernels.spec import ConvSpec

NAMES = ("reference", "cpu", "cuda", "triton")


@pytest.fixture
def calls(monkeypatch):
    """Names of the calls that reach the C++ backend."""
    made, forward = [], cpu.forward

    def recorded(*args):
        made.append("forward")
        return forward(*args)

    monkeypatch.setattr(cpu, "forward", recorded)
    return made


@pytest.fixture
def build(monkeypatch, tmp_path):
    """Sets what setup.py is to have recorded; None for nothing at all."""

    def clear():
        for cached in (extension.build_info, extension._load_error, extension.missing):
            cached.cache_clear()

    def record(content):
        path = tmp_path / "_build_info.json"
        if content is not None:
            path.write_text(json.dumps(content))
        monkeypatch.setattr(extension, "BUILD_INFO", path)
        clear()

    yield record
    monkeypatch.undo()
    clear()


def run():
    x = torch.randn(1, 2, 4, 4)
    return compact_conv2d(x, torch.randn(3, 2, 3, 3))


def test_available_backends_are_names_the_reference_first():
    names = ccn_kernels.available_backends()
    assert isinstance(names, tuple)
    assert names[0] == "reference"
    assert set(names) <= set(NAMES)
    assert len(set(names)) == len(names)
    assert names == tuple(name for name in backends.NAMES if name in names)


def test_a_backend_that_was_built_is_available():
    assert ("cpu" in ccn_kernels.available_backends()) == (extension.build_info()["cpu"] == "built")


def test_every_backend_has_what_a_backend_needs():
    assert {backend.NAME for backend in backends.PREFERENCE} == set(NAMES)
    assert backends.PREFERENCE[-1].NAME == "reference"  # the last resort, which runs everything
    for backend in backends.PREFERENCE:
        reason = backend.unavailable()
        assert reason is None or len(reason) > 10
        assert backends.get(backend.NAME) is backend


def test_the_fastest_that_can_run_the_call_is_chosen(calls):
    assert backends.select(None, "cpu", torch.float32, 2) == "cpu"
    assert backends.select(None, "meta", torch.float32, 2) == "reference"
    run()
    assert calls == ["forward"]


@pytest.mark.parametrize(("case", "reason"), [("transformed", "forward-mode"), ("wrapped", "subclass")])
def test_some_calls_are_the_references_alone(case, reason):
    assert backends.select(None, "cpu", torch.float32, 2, **{case: True}) == "reference"
    found = backends.explain("cpu", **{case: True})
    assert found.pop("reference") is None
    assert all(reason in text for text in found.values())


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_cpu_backend_runs_every_rank_and_dtype(rank, dtype):
    assert backends.select(None, "cpu", dtype, rank) == "cpu"


def test_the_argument_decides(calls):
    compact_conv2d(torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3), backend="reference")
    compact_linear(torch.randn(2, 4), torch.randn(3, 4), backend="reference")
    CompactConv2d(2, 3, 3, backend="reference")(torch.randn(1, 2, 4, 4))
    assert calls == []
    CompactLinear(4, 3, backend="cpu")(torch.randn(2, 4))
    assert calls == ["forward"]


def test_the_environment_decides_for_a_whole_run(calls, monkeypatch):
    monkeypatch.setenv("CCN_BACKEND", "reference")
    run()
    CompactLinear(4, 3)(torch.randn(2, 4))
    assert calls == []
    monkeypatch.setenv("CCN_BACKEND", "cpu")
    run()
    assert calls == ["forward"]


def test_the_argument_wins_over_the_environment(calls, monkeypatch):
    monkeypatch.setenv("CCN_BACKEND", "cpu")
    compact_conv2d(torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3), backend="reference")
    assert calls == []
    monkeypatch.setenv("CCN_BACKEND", "no such thing")
    compact_conv2d(torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3), backend="cpu")
    assert calls == ["forward"]


@pytest.fixture
def gpu(monkeypatch):
    """As if there were a GPU of capability 9.0, and both backends for it built."""
    for backend in (backends.triton, backends.cuda):
        monkeypatch.setattr(backend, "unavailable", lambda: None)
    monkeypatch.setattr(backends.triton, "interpreting", lambda: False)
    monkeypatch.setattr(backends.triton, "device", lambda index: SimpleNamespace(capability=90))
    monkeypatch.setattr(backends.cuda, "_oldest_capability", lambda: (9, 0))


def test_on_a_gpu_triton_is_preferred(gpu):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert backends.select(None, "cuda", dtype, 2) == "triton"


def test_cuda_takes_what_triton_rejects_and_both_say_why(gpu, caplog):
    with caplog.at_level(logging.DEBUG, logger="ccn_kernels"):
        assert backends.select(None, "cuda", torch.float64, 2) == "cuda"
    assert "float64" in caplog.text
    found = backends.explain("cuda", torch.float64)
    assert "float64" in found["triton"]
    assert found["cuda"] is None


def test_cuda_stands_in_where_triton_is_not(gpu, monkeypatch):
    monkeypatch.setattr(backends.triton, "unavailable", lambda: "triton is not installed")
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert backends.select(None, "cuda", dtype, 0) == "cuda"
    assert "not installed" in backends.explain("cuda")["triton"]


def test_gpus_too_old_for_the_cuda_kernels_get_the_reference(gpu, monkeypatch):
    monkeypatch.setattr(backends.cuda, "_oldest_capability", lambda: (7, 5))
    assert backends.select(None, "cuda", torch.float64, 2) == "reference"
    with pytest.raises(RuntimeError, match=r"capability 8\.0, this GPU has 7\.5"):
        backends.select("cuda", "cuda", torch.float32, 2)


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_a_gpu_without_memory_is_pytorchs_error(name, monkeypatch):
    """The stable ABI makes RuntimeErrors of all; training loops that halve the batch catch this one."""

    def refuse(*call, **settings):
        raise RuntimeError(said)

    monkeypatch.setattr(extension, name, refuse)
    said = "CUDA out of memory. Tried to allocate 9.00 GiB."
    with pytest.raises(torch.OutOfMemoryError, match=said):
        getattr(cuda, name)(ConvSpec((1,), (0,), (1,), 1, 0.01, False), None)
    said = "grad has the wrong shape"
    with pytest.raises(RuntimeError, match=said) as error:
        getattr(cuda, name)(ConvSpec((1,), (0,), (1,), 1, 0.01, False), None)
    assert error.type is RuntimeError


def test_an_empty_variable_is_none_at_all(calls, monkeypatch):
    monkeypatch.setenv("CCN_BACKEND", "")
    run()
    assert calls == ["forward"]


def test_unknown_names_are_value_errors_that_list_the_known(monkeypatch):
    with pytest.raises(ValueError, match=r"backend must be one of .*reference.*'fastest'"):
        compact_conv2d(torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3), backend="fastest")
    for name in ("fastest", "", "CPU"):
        with pytest.raises(ValueError, match="backend"):
            backends.get(name)
    monkeypatch.setenv("CCN_BACKEND", "fastest")
    with pytest.raises(ValueError, match=r"CCN_BACKEND must be one of .*reference"):
        run()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ccn_kernels.available_backends()])
def test_a_backend_that_is_not_there_is_refused_with_its_reason(name, monkeypatch):
    reason = backends.get(name).unavailable()
    with pytest.raises(RuntimeError) as caught:
        compact_conv2d(torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3), backend=name)
    assert reason in str(caught.value)
    assert f"backend='{name}'" in str(caught.value)
    monkeypatch.setenv("CCN_BACKEND", name)
    with pytest.raises(RuntimeError) as caught:
        run()
    assert reason in str(caught.value)
    assert "CCN_BACKEND" in str(caught.value)


def test_a_backend_on_the_wrong_device_is_refused_with_its_reason():
    x, w = torch.randn(1, 2, 4, 4, device="meta"), torch.randn(3, 2, 3, 3, device="meta")
    with pytest.raises(RuntimeError, match=r"cpu.*meta"):
        compact_conv2d(x, w, backend="cpu")


def test_explain_gives_a_reason_for_each_that_cannot():
    found = backends.explain("cpu", torch.float32, 2)
    assert list(found) == [backend.NAME for backend in backends.PREFERENCE]
    assert found["cpu"] is None
    assert found["reference"] is None
    for name in set(NAMES) - set(ccn_kernels.available_backends()):
        assert found[name] == backends.get(name).unavailable()
    elsewhere = backends.explain("meta")
    assert "meta" in elsewhere["cpu"]
    assert elsewhere["reference"] is None


def test_rejections_are_logged_for_who_listens(caplog):
    with caplog.at_level(logging.DEBUG, logger="ccn_kernels"):
        backends.select(None, "meta", torch.float32, 2)
    text = " ".join(record.getMessage() for record in caplog.records if record.name == "ccn_kernels")
    assert "cpu" in text
    assert "meta" in text


@pytest.mark.parametrize(
    ("recorded", "state"),
    [
        (None, "setup.py has not run"),
        ({"cpu": "no C++ compiler on PATH", "cuda": "no nvcc"}, "no C++ compiler on PATH"),
        ({"cuda": "no nvcc"}, "unknown"),
    ],
    ids=["not installed", "not built", "not recorded"],
)
def test_the_reference_serves_where_nothing_was_built(build, recorded, state):
    build(recorded)
    assert ccn_kernels.available_backends() == ("reference",)
    assert backends.select(None, "cpu", torch.float32, 2) == "reference"
    assert run().isfinite().all()
    with pytest.raises(RuntimeError) as caught:
        compact_conv2d(torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3), backend="cpu")
    for part in (state, "CCN_BUILD=cpu", "pip install"):
        assert part in str(caught.value)


def test_a_library_that_does_not_load_is_a_reason_and_no_crash(build, monkeypatch, tmp_path):
    broken = tmp_path / "libccn_native.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(extension, "LIBRARY", broken)
    build({"cpu": "built"})
    assert "libccn_native.so does not load" in extension.missing("cpu")
    assert backends.select(None, "cpu", torch.float32, 2) == "reference"
    with pytest.raises(RuntimeError, match="does not load"):
        compact_conv2d(torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3), backend="cpu")


def test_the_library_is_loaded_only_when_first_needed():
    script = (
        "import torch, ccn_kernels\n"
        "print(len(torch.ops.loaded_libraries))\n"
        "ccn_kernels.functional.compact_linear(torch.ones(1, 2), torch.ones(1, 2), backend='reference')\n"
        "print(len(torch.ops.loaded_libraries))\n"
        "ccn_kernels.functional.compact_linear(torch.ones(1, 2), torch.ones(1, 2), backend='cpu')\n"
        "print(len(torch.ops.loaded_libraries))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, between, after = map(int, done.stdout.split())
    assert before == between == after - 1


@pytest.mark.parametrize("command", [["ccn_kernels.env_report"], ["ccn_kernels", "env"]], ids=" ".join)
def test_the_environment_report_runs_as_a_module(command):
    environment = {**os.environ, "CCN_BACKEND": "reference"}
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-m", *command],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    for part in (*NAMES, ccn_kernels.__version__, torch.__version__, "cpu component", "CCN_BACKEND:       reference"):
        assert part in done.stdout, part


def test_the_environment_report_tells_what_is_missing_and_why(build):
    build({"cpu": "no C++ compiler", "cuda": "no nvcc"})
    found = env_report.report()
    assert "no C++ compiler" in found["backends"]["cpu"]
    assert found["backends"]["reference"] == "available"
    assert found["ccn_kernels"]["cuda component"] == "no nvcc"
    assert found["packages"]["torch"] == torch.__version__
    assert "compiled with" in found["ccn_kernels"]
    assert "no C++ compiler" in env_report.text()


def test_the_environment_report_is_json_when_asked(capsys):
    env_report.main(as_json=True)
    assert json.loads(capsys.readouterr().out) == env_report.report()


def test_public_names_are_what_they_say():
    for name in ccn_kernels.__all__:
        assert hasattr(ccn_kernels, name), name
    assert ccn_kernels.env_report is importlib.import_module("ccn_kernels.env_report")
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = ccn_kernels.nothing_of_the_kind
