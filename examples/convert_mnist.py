"""Converts a trained MNIST network: accuracy at every stage, as docs/converting.md has it. Needs the robustness extra.

python examples/convert_mnist.py --data DIR    # DIR: MNIST's four IDX files
"""

import argparse
import copy
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from ccn_kernels.convert import calibrate, param_groups, to_compact
from ccn_kernels.robustness import data
from ccn_kernels.robustness.config import TrainConfig
from ccn_kernels.robustness.runs import Network
from ccn_kernels.robustness.training import accuracy, train

STEPS, BATCH = 100, 128


def fine_tuned(model, mnist, rate, seed):
    """A copy after a hundred steps, on images that are the same for every model."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(param_groups(model, 0.01), lr=rate)
    order = torch.randperm(len(mnist.train), generator=torch.Generator().manual_seed(seed))
    for images, labels, _ in mnist.train.batches(order[: STEPS * BATCH], BATCH):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of MNIST's four IDX files")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    mnist = data.load("mnist", options.data)
    config = TrainConfig(epochs=2, seed=options.seed)
    with tempfile.TemporaryDirectory() as folder:
        plain = train(Network("mnist_cnn", "sm"), mnist, config, Path(folder)).model
    converted = to_compact(plain, fuse_relu=True)
    images, *_ = next(mnist.train.batches(range(512), 512))
    calibrated = calibrate(copy.deepcopy(converted), images)
    stages = {"plain": plain, "converted": converted, "calibrated": calibrated}
    for rate in (1e-3, 1e-4):
        for name in ("converted", "calibrated"):
            stages[f"{name}, {STEPS} steps at {rate:.0e}"] = fine_tuned(stages[name], mnist, rate, options.seed)
    for name, model in stages.items():
        print(f"{name:32}{accuracy(model, mnist.test):6.2f}")


if __name__ == "__main__":
    main()
