"""Each test here shows one feature of ``nn.Conv2d`` on both layers, and is a row of docs/behaviour.md.

``@pytest.mark.behaviour(section, feature)`` makes the row; ``ours`` and ``conv`` say what the cells do where a layer
does not simply work. A test that takes ``kind`` runs with ``nn.Conv2d`` and with ours; one that does not must say what
``conv`` does.
"""

import importlib.util

import behaviour
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ccn_kernels import CompactConv2d, CompactLinear
from ccn_kernels.functional import compact_conv2d

libraries = [importlib.util.find_spec(name) for name in ("torchvision", "timm")]
collect_ignore = [] if torch.version.cuda and any(libraries) else ["test_image_libraries.py"]


@pytest.fixture(params=[nn.Conv2d, CompactConv2d], ids=["plain", "compact"])
def kind(request):
    return request.param


@pytest.fixture
def function(kind):
    """What the layer calls."""
    return F.conv2d if kind is nn.Conv2d else compact_conv2d


@pytest.fixture
def network(kind):
    """A small network of the layer: images [N, 3, 8, 8] to [N, 5]."""
    linear = nn.Linear if kind is nn.Conv2d else CompactLinear
    return nn.Sequential(
        kind(3, 8, 3, padding="same"),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        kind(8, 6, (2, 3), stride=2, padding=1, padding_mode="reflect", groups=2, bias=False),
        nn.Flatten(),
        linear(6 * 5 * 4, 5),
    )


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def pytest_collection_modifyitems(config, items):
    """The comparison of the table with what the session saw comes last."""
    items.sort(key=lambda item: item.path.name == behaviour.LAST)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    mark = item.get_closest_marker("behaviour")
    if mark is not None and (report.when == "call" or report.outcome != "passed"):
        table = item.session.stash.setdefault(behaviour.SEEN, behaviour.Table())
        table.add(behaviour.row_of(item, mark), report.passed)
    return report
