"""What every test gets: a fixed seed, uninitialised memory full of NaN, and settings that do not leak."""

import importlib.util
import os

import pytest
import torch

from ccn_kernels import backends

# Triton's kernels need a GPU or its interpreter (TRITON_INTERPRET=1): without, their tests are not even imported.
collect_ignore = ["triton_backend"] if backends.triton.unavailable() else []
if importlib.util.find_spec("triton") is None:
    collect_ignore.append("test_kernels_report.py")

# Those that take CPU tensors on this machine; a backend that appears later is tested without a change here. Triton's
# interpreter takes neither every dtype nor threads: tests/triton_backend is its own suite.
REASONS = {name: reason for name, reason in backends.explain("cpu").items() if name != "triton"}
BACKENDS = tuple(name for name, reason in reversed(REASONS.items()) if reason is None)


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Every backend that can run on CPU tensors here, by name."""
    return request.param


@pytest.fixture(params=[name for name in BACKENDS if name != "reference"])
def kernels(request):
    """Every backend that has kernels of its own: those behind the `ccn` operators."""
    return request.param


@pytest.fixture(autouse=True)
def isolated():
    """Seeds, poisons what ``torch.empty`` returns (from C++ too), and puts back what a test may have changed."""
    environment = os.environ.pop(backends.ENVIRONMENT, None)
    threads, previous = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
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
