import json
import subprocess
import sys

import pytest
import torch

import ccn_kernels
from ccn_kernels import backends
from ccn_kernels.backends import extension
from ccn_kernels.functional import compact_linear

F32 = torch.float32


def call(**settings):
    return compact_linear(torch.ones(1, 2), torch.ones(1, 2), **settings)


def test_the_compiled_backend_is_preferred_and_the_reference_comes_last():
    assert ccn_kernels.available_backends() == ("reference", "cpu")
    assert backends.select(None, "cpu", F32, 2) == "cpu"
    assert backends.select(None, "meta", F32, 2) == "reference"
    assert list(backends.explain())[-1] == "reference"


def test_the_environment_variable_chooses_and_the_argument_wins_over_it(monkeypatch):
    monkeypatch.setenv("CCN_BACKEND", "reference")
    assert backends.select(None, "cpu", F32, 2) == "reference"
    assert backends.select("cpu", "cpu", F32, 2) == "cpu"
    monkeypatch.setenv("CCN_BACKEND", "tpu")
    with pytest.raises(ValueError, match="CCN_BACKEND must be one of"):
        call()
    assert call(backend="cpu").shape == (1, 1)
    monkeypatch.setenv("CCN_BACKEND", "")
    assert backends.select(None, "cpu", F32, 2) == "cpu"


@pytest.mark.parametrize("name", ["tpu", "", "CPU"])
def test_an_unknown_name_is_a_value_error(name):
    with pytest.raises(ValueError, match="backend must be one of"):
        call(backend=name)
    with pytest.raises(ValueError, match="backend must be one of"):
        ccn_kernels.CompactLinear(2, 1, backend=name)


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_a_backend_that_cannot_run_the_call_says_why(name):
    reason = backends.explain()[name]
    with pytest.raises(RuntimeError, match=f"backend='{name}' cannot run this call: ") as error:
        call(backend=name)
    assert reason in str(error.value)


def test_the_cpu_backend_refuses_tensors_elsewhere():
    with pytest.raises(RuntimeError, match="input is on meta"):
        backends.select("cpu", "meta", F32, 2)


def test_a_backend_that_compiles_but_was_never_run_is_used_only_by_name(monkeypatch):
    monkeypatch.setattr(backends.cuda, "unavailable", lambda: None)
    assert backends.select(None, "cuda", F32, 2) == "reference"
    assert backends.select("cuda", "cuda", F32, 2) == "cuda"


@pytest.fixture
def not_built(monkeypatch):
    reason = "torch is not installed where the package is built"
    extension.missing.cache_clear()
    monkeypatch.setattr(extension, "build_info", lambda: {"cpu": reason, "cuda": reason})
    yield reason
    extension.missing.cache_clear()


def test_without_the_library_the_reference_runs_and_the_reason_tells_what_to_do(not_built):
    assert ccn_kernels.available_backends() == ("reference",)
    assert call().shape == (1, 1)
    with pytest.raises(RuntimeError, match=not_built) as error:
        call(backend="cpu")
    assert "CCN_BUILD=cpu pip install --no-build-isolation" in str(error.value)


def test_a_library_that_does_not_load_says_so(monkeypatch, tmp_path):
    broken = tmp_path / "libccn_native.so"
    broken.write_text("not a library")
    monkeypatch.setattr(extension, "LIBRARY", broken)
    assert "does not load" in extension._load_error.__wrapped__()


def test_an_installation_without_a_build_record_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(extension, "BUILD_INFO", tmp_path / "none.json")
    assert "setup.py has not run" in extension.build_info.__wrapped__()["cpu"]


def test_rejections_are_logged(caplog):
    with caplog.at_level("DEBUG", logger="ccn_kernels"):
        backends.select(None, "cpu", F32, 2)
    assert "backend triton rejected" in caplog.text


@pytest.mark.parametrize("module", ["ccn_kernels.env_report", "ccn_kernels"])
def test_env_report_runs_as_a_module_without_warnings(module):
    command = [
        sys.executable,
        "-W",
        "error::RuntimeWarning",
        "-m",
        module,
        *(["env"] if module == "ccn_kernels" else []),
    ]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for word in (ccn_kernels.__version__, "cpu component", "reference", "python"):
        assert word in printed


def test_env_report_is_data_too():
    report = ccn_kernels.env_report.report()
    assert report["backends"]["cpu"] == "available"
    assert "2.10" in report["ccn_kernels"]["compiled with"]
    assert json.loads(json.dumps(report)) == report
