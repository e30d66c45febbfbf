"""What tests of the Triton backend get besides: exact fp32 products."""

import pytest
import torch

from ccn_kernels.backends import triton

# Asked for by name where nothing runs kernels, this folder shows what needs none.
collect_ignore = ["test_contract.py", "test_kernels.py", "test_tune.py"] if triton.unavailable() else []


def pytest_configure(config):
    """Triton 3.6's interpreter warns of its own ways with NumPy, thousands of times."""
    config.addinivalue_line("filterwarnings", "ignore:Conversion of an array with ndim:DeprecationWarning")


@pytest.fixture(autouse=True)
def exact_products():
    """The oracle's tolerance for fp32 is fp32's own; PyTorch's default lets cuDNN round to TF32."""
    settings = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "ieee"
    yield
    for setting, precision in zip(settings, before, strict=True):
        setting.fp32_precision = precision
