"""Few images, and models that are no network of the paper's."""

import torch
from torch import nn

from ccn_kernels import cli
from ccn_kernels.robustness import runs
from ccn_kernels.robustness.data.splits import TensorSplit


def part(split, count):
    images, labels, _ = next(split.batches(range(count), count))
    return TensorSplit(images, labels, "cpu", split.augmented)


def trained_on(images, labels, convolution=nn.Conv2d):
    """A small network that has learned these digits."""
    torch.manual_seed(0)
    layers = (convolution(1, 8, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


def succeeds(capsys, *arguments):
    """What `ccn` printed."""
    assert cli.main(list(map(str, arguments))) == 0
    return capsys.readouterr().out


def fails(capsys, *arguments):
    """What `ccn` said was wrong."""
    assert cli.main(list(map(str, arguments))) == 1
    return capsys.readouterr().err


def as_run(model, digest="0"):
    return runs.Run(runs.Network("mnist_cnn"), model, {"weights_sha256": digest})
