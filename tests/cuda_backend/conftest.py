"""What tests of the CUDA kernels get besides: where nothing runs them, each is skipped, with the reason."""

import pytest
from emulator import emulated

from ccn_kernels import backends

REASON = backends.explain(emulated.device())["cuda"]


@pytest.fixture(autouse=True)
def kernels_are_there():
    if REASON:
        pytest.skip(REASON)
