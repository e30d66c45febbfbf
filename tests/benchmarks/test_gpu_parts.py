"""What `make gpu` does before and around its measurements."""

from types import SimpleNamespace

import gpu as command
import pytest
import torch
from gpu_parts import checks, library, record, summary, sweep, sweep_cuda, trace

from ccn_kernels import reference


@pytest.fixture
def gpu(monkeypatch):
    """As if there were a GPU of capability 9.0."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


@pytest.fixture
def provided(gpu, monkeypatch, tmp_path):
    """Has a script in the place of setup.py build the library; what is recorded of it, and its log."""

    def run(script, reason=None):
        builder = tmp_path / "builder.py"
        builder.write_text(script)
        monkeypatch.setattr(library, "BUILD", (str(builder),))
        monkeypatch.setattr(library.cuda, "unavailable", lambda: reason)
        log = tmp_path / "build.log"
        return library.provide(log), log.read_text()

    return run


def test_a_library_that_was_built_here(provided, monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    script = "import os; print(os.environ['CCN_BUILD'], os.environ['TORCH_CUDA_ARCH_LIST'])"
    assert provided(script) == ({"build": "done", "CUDA kernels": "built here"}, "cuda 9.0a\n")


def test_one_that_lies_in_the_checkout_serves_where_none_can_be_built(provided):
    found, _ = provided("raise SystemExit('CCN_BUILD=cuda: the cuda backend cannot be built: no nvcc')")
    assert found["build"].endswith("cannot be built: no nvcc")
    assert found["CUDA kernels"] == "found in the checkout"


def test_none_at_all_is_no_error(provided, monkeypatch):
    monkeypatch.setattr(library, "LIMIT", 0.5)
    found, _ = provided("import time; time.sleep(60)", reason="the cuda backend was not built")
    assert found == {"build": "it took longer than 0 s", "CUDA kernels": "none: the cuda backend was not built"}


def test_a_dry_run_builds_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "build", lambda log: pytest.fail("built"))
    assert library.provide(tmp_path / "build.log", dry_run=True)["build"] == "not tried in a dry run"


@pytest.mark.parametrize(("capability", "name"), [((8, 0), "8.0"), ((9, 0), "9.0a"), ((12, 0), "12.0a")])
def test_architectures_are_named_as_torch_names_them(capability, name):
    assert library.architecture(capability) == name


def test_the_summary_tells_of_the_library_and_of_tests_that_were_not_run(tmp_path):
    diagnostics = record.Record(tmp_path / "none.json")
    diagnostics.data["library"] = {"build": "no nvcc", "CUDA kernels": "found in the checkout"}
    row = {"counts": {"passed": 3}, "not run": {"cuda": "it was not built"}}
    diagnostics.data["parts"] = {"tests": {"rows": {"pytest": row}}}
    text = summary.summary(tmp_path / "none", diagnostics, ["tests"])
    assert "build: no nvcc\nCUDA kernels: found in the checkout" in text
    assert "pytest: {'passed': 3}\npytest of cuda: not run, it was not built" in text


def test_backends_whose_tests_are_skipped_are_named_with_the_reason(monkeypatch):
    reasons = {"triton": None, "cuda": "it was not built", "cpu": "of no interest"}
    monkeypatch.setattr(checks.backends, "explain", lambda device: reasons)
    assert checks.not_run(SimpleNamespace(device="cuda")) == {"cuda": "it was not built"}


def test_the_folders_of_tests_exist():
    assert all((checks.ROOT / folder).is_dir() for folder in checks.TESTS)


def test_a_backend_that_is_not_there_is_no_failure_of_ours(monkeypatch):
    monkeypatch.setattr(command.backends.cuda, "unavailable", lambda: "it was not built")
    assert not command.is_ours({"provider": "ccn_cuda", "backend": "cuda"})
    assert command.is_ours({"provider": "ccn", "backend": "reference"})
    monkeypatch.setattr(command.backends.cuda, "unavailable", lambda: None)
    assert command.is_ours({"provider": "ccn_cuda", "backend": "cuda"})
    assert not command.is_ours({"provider": "conv", "backend": None})


def test_every_tool_runs_over_every_backend_s_kernels():
    run = SimpleNamespace(device="cpu", dry_run=False)
    rows = checks.sanitizer(run)
    assert list(rows)[:2] == ["sweep, triton", "sweep, cuda"]
    assert {f"{tool}, cuda" for tool in ("memcheck", "synccheck", "initcheck", "racecheck")} < rows.keys()


def test_kernels_that_are_not_there_are_not_swept_and_the_row_says_why(monkeypatch):
    monkeypatch.setattr(checks.backends, "explain", lambda device: {"triton": None, "cuda": "it was not built"})
    run = SimpleNamespace(device="cuda", dry_run=False)
    assert checks.sweep(run, "cuda") == {"kind": "sweep", "unavailable": "it was not built"}
    monkeypatch.setattr(checks.shutil, "which", lambda name: name)
    assert checks.check(run, "memcheck", "cuda")["unavailable"] == "it was not built"


@pytest.mark.parametrize(("tf32", "name"), [(False, "float32"), (True, "tf32")])
def test_a_sweep_sees_what_is_wrong(tf32, name, capsys):
    """The reference itself as a backend; once more with an output that is off by a hundredth."""
    call = sweep.Call("small", (4, 6), groups=2, relu=True, tf32=tf32, wanted=("input", "bias"))

    def right(call, operands, grad):
        leaves = {key: operand.clone().requires_grad_() for key, operand in operands.items()}
        output = reference.compact_conv(*leaves.values(), call.spec)
        return {"output": output, **dict(zip(leaves, torch.autograd.grad(output, leaves.values(), grad), strict=True))}

    def wrong(call, operands, grad):
        results = right(call, operands, grad)
        return {**results, "output": results["output"] * 1.01, "weight": None}  # which nobody wants

    assert sweep.wrong_of([call], right, "cpu") == []
    assert sweep.wrong_of([call], wrong, "cpu") == [f"small {name}"]
    assert "WRONG: output" in capsys.readouterr().out


def test_the_cuda_sweep_takes_every_type_through_every_way():
    names = {(call.name, call.precision) for call in sweep_cuda.CALLS}
    assert len(names) == len(sweep_cuda.CALLS) == 5 * len(sweep_cuda.WAYS)


def test_a_trace_is_read_tile_by_tile():
    """Two programs of five and four tiles. A turn takes 90 cycles, the next one begins 10 later; ends take 150."""
    starts = 100 * torch.arange(5) + torch.tensor([[1000], [7000]])
    clocks = starts[:, :, None] + torch.tensor([0, 90, 120, 240])
    clocks[1, 4] = 0
    clocks[:, 0] -= 5000  # which waits for the launch before
    found = trace.cycles(clocks, tiles=9)
    assert found["cycles"] == {
        "tile": 100, "turn": 90, "handed on": 10, "drained": 30, "written": 120, "idle": -40
    }  # fmt: skip
    assert trace.cycles(clocks[:, :2], tiles=4)["cycles"]["tile"] is None
