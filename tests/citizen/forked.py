"""``forked.py plain|compact``: a process forked off one that has computed with threads, as a DataLoader's workers are.

Ends with 0 where the child computes the parent's bits. A script of its own, since a CUDA device of its process's would
forbid a child any backward pass.
"""

import multiprocessing
import sys

import torch
from torch import nn

from ccn_kernels import CompactConv2d, CompactLinear

PATIENCE = 60  # seconds, after which the child hangs
CONV, LINEAR = {"plain": (nn.Conv2d, nn.Linear), "compact": (CompactConv2d, CompactLinear)}[sys.argv[1]]


def layers_and_inputs():
    """A layer for every way in which the CPU convolves."""
    yield CONV(3, 8, 3, padding=1), torch.randn(4, 3, 12, 12)
    yield CONV(32, 32, 3, padding=1), torch.randn(4, 32, 12, 12)
    yield CONV(32, 32, 3, padding=1, groups=32), torch.randn(4, 32, 12, 12)
    yield CONV(32, 16, 1, stride=2), torch.randn(4, 32, 12, 12)
    yield LINEAR(64, 32), torch.randn(16, 64)


def computed(cases):
    """Outputs and gradients, as bytes."""
    results = []
    for layer, input in cases:
        output = layer(input)
        gradients = torch.autograd.grad(output.square().sum(), list(layer.parameters()))
        results += [tensor.detach().numpy().tobytes() for tensor in (output, *gradients)]
    return results


def child(cases, pipe):
    torch.set_num_threads(1)  # as a DataLoader's worker does: no convolution survives a fork with more
    pipe.send(computed(cases))


def main():
    cases = list(layers_and_inputs())
    torch.set_num_threads(2)
    computed(cases)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(cases, theirs), daemon=True)
    process.start()
    if not ours.poll(PATIENCE):
        sys.exit("the child hangs")
    received = ours.recv()
    torch.set_num_threads(1)
    if received != computed(cases):
        sys.exit("the child computes something else")


if __name__ == "__main__":
    main()
