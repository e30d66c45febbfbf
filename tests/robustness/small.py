"""Few images, and models that are no network of the paper's."""

from ccn_kernels.robustness import runs
from ccn_kernels.robustness.data.splits import TensorSplit


def part(split, count):
    images, labels, _ = next(split.batches(range(count), count))
    return TensorSplit(images, labels, "cpu", split.augmented)


def as_run(model, digest="0"):
    return runs.Run(runs.Network("mnist_cnn"), model, {"weights_sha256": digest})
