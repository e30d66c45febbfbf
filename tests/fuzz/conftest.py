"""The fuzz test's backends, how many examples it draws, and how a failure is run again. See `make fuzz`."""

import os

import pytest
from hypothesis import HealthCheck, Phase, settings

from ccn_kernels import backends

# The kernels that are interpreted or emulated have a process of their own. What is run, and the examples of CI's slice.
if backends.triton.interpreting():
    KIND, BACKENDS, SLICE = "triton", ("triton",), 500
elif backends.explain("cpu")["cuda"] is None:
    KIND, BACKENDS, SLICE = "cuda", ("cuda",), 1500
else:
    KIND, BACKENDS, SLICE = "native", ("reference", "cpu"), 2500


def profile(name, examples):
    settings.register_profile(
        name,
        max_examples=int(os.environ.get("FUZZ_EXAMPLES") or examples),
        deadline=None,
        database=None,  # the seed alone decides what is drawn:
        derandomize=False,  # in automated builds too
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        # fixtures poison memory and set switches: once is enough for all examples of a test
        suppress_health_check=(HealthCheck.function_scoped_fixture, HealthCheck.too_slow),
    )


profile("slice", SLICE)
profile("fuzz", 3000)
settings.load_profile("fuzz")


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    seed = config.getoption("--hypothesis-seed")
    if exitstatus and seed is not None:
        again = f"make fuzz-{KIND} SEED={seed} EXAMPLES={settings().max_examples}"
        terminalreporter.write_line(f"to run it again: {again}; a failing Case(...).problem() has its tensors")
