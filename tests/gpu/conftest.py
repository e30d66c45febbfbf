"""What tests that only a GPU can pass get besides: every backend that has kernels for one."""

import pytest

from ccn_kernels import backends

REASONS = backends.explain("cuda")


def on_gpu(name):
    """A backend that cannot run is a test that says why."""
    reason = REASONS[name]
    return pytest.param(name, marks=pytest.mark.skipif(reason is not None, reason=f"{name}: {reason}"))


@pytest.fixture(params=[on_gpu("triton"), on_gpu("cuda")])
def backend(request):
    return request.param
