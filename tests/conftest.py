"""What every test gets: a fixed seed, uninitialised memory full of NaN, and settings that do not leak."""

import dataclasses
import importlib.util
import os
from pathlib import Path

import pytest
import torch

from ccn_kernels import backends
from ccn_kernels.backends import cuda

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic mode refuses matrix products without it
os.environ.setdefault("CI", "1")  # Inductor refuses more of operators there, and automated builds set it
CUDA_TESTS = Path(__file__).parent / "cuda_backend"
EMULATED = os.environ.pop("CCN_EMULATED", None) == "1"  # the CUDA kernels too, on a CPU
if EMULATED:
    from emulator import emulated

    emulated.install()

if backends.triton.interpreting() and not backends.triton.unavailable():
    from triton.runtime import interpreter

    # a third of its time goes into checks for 32-bit overflow, which problems this small cannot have
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)

collect_ignore = ["fuzz"]  # it is run by its name: see `make fuzz`
# Triton's kernels need a GPU or its interpreter (TRITON_INTERPRET=1): without, their tests are not even imported.
collect_ignore += ["triton_backend"] if backends.triton.unavailable() else []
if cuda.unavailable():  # likewise
    collect_ignore.append("cuda_backend")
if importlib.util.find_spec("triton") is None:
    collect_ignore += ["test_kernels_report.py", "guard/test_cuda_verdicts.py"]  # it brings the disassembler
if importlib.util.find_spec("triton") is None or importlib.util.find_spec("ccn_kernels._C") is None:
    collect_ignore += ["test_launches.py", "test_persistent.py"]

# Those that take CPU tensors on this machine; a backend that appears later is tested without a change here. Triton's
# interpreter takes neither every dtype nor threads: tests/triton_backend is its own suite.
REASONS = {name: reason for name, reason in backends.explain("cpu").items() if name != "triton"}
BACKENDS = tuple(name for name, reason in reversed(REASONS.items()) if reason is None)


def pytest_collection_modifyitems(config, items):
    """With the CUDA kernels emulated: their own tests, and every other test that takes a backend, with them for it."""

    def is_theirs(item):
        given = getattr(item, "callspec", None)
        taken = given and {given.params.get("backend"), given.params.get("kernels")}
        return item.path.is_relative_to(CUDA_TESTS) or (taken and cuda.NAME in taken)

    if EMULATED:
        config.hook.pytest_deselected(items=[item for item in items if not is_theirs(item)])
        items[:] = [item for item in items if is_theirs(item)]


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Every backend that can run on CPU tensors here, by name."""
    return request.param


@pytest.fixture(params=[name for name in BACKENDS if name != "reference"])
def kernels(request):
    """Every backend that has kernels of its own: those behind the `ccn` operators."""
    return request.param


def exact_products():
    """The oracle's tolerance for fp32 is fp32's own. Set by the old switches: torch.export reads them."""
    if EMULATED or backends.triton.interpreting() or torch.cuda.is_available():
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture(autouse=True)
def isolated():
    """Seeds, poisons what ``torch.empty`` returns (from C++ too), and puts back what a test may have changed."""
    environment = os.environ.pop(backends.ENVIRONMENT, None)
    threads, previous = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    exact_products()
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(previous)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    os.environ.pop(backends.ENVIRONMENT, None)
    if environment is not None:
        os.environ[backends.ENVIRONMENT] = environment
