"""A small data set: enough to train on for a moment."""

import pytest
import torch
from small import as_run, part

from ccn_kernels.robustness import data
from ccn_kernels.robustness.data.splits import TensorSplit


@pytest.fixture(autouse=True)
def isolated():
    """Replaces the fixture that poisons memory: its deterministic mode makes oneDNN's convolutions take ages."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread():
    """For networks that are too small for two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def few_digits():
    whole = data.load("digits")
    return whole._replace(name="few", train=part(whole.train, 96), test=part(whole.test, 40))


@pytest.fixture
def bright_or_dark():
    """A network that calls an image 1 where its mean exceeds a half, and images around that border."""

    class Mean(torch.nn.Module):
        def forward(self, images):
            score = images.flatten(1).mean(1) - 0.5
            return torch.stack([-score, score], dim=1)

    levels = torch.tensor([0.1, 0.35, 0.45, 0.55, 0.65, 0.9])
    images = levels.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()
    return as_run(Mean()), TensorSplit(images, (levels > 0.5).long(), "cpu")
