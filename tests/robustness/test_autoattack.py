"""AutoAttack itself, by its authors, on networks with our layers: it runs unchanged, and finds what we find."""

import pytest
import torch
from pyautoattack import AutoAttack
from small import as_run, part, trained_on
from torch import nn

from ccn_kernels import CompactConv2d
from ccn_kernels.robustness import data, worst


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("convolution", "epsilon"), [(nn.Conv2d, 0.06), (CompactConv2d, 0.02)])
def test_its_standard_version_leaves_what_our_minimum_leaves(convolution, epsilon, tmp_path):
    digits = data.load("digits")
    images, labels, _ = next(digits.train.batches(range(400), 400))
    model, judged = trained_on(images, labels, convolution), part(digits.train, 30)
    autoattack = AutoAttack(model, norm="Linf", eps=epsilon, version="standard", seed=0)
    crafted, seen = autoattack.run_standard_evaluation(judged.images, judged.labels)
    assert (crafted - judged.images).abs().amax() <= epsilon + 1e-6
    theirs = seen == judged.labels
    assert torch.equal(model(crafted).argmax(1), seen)

    plan = worst.plan("linf", (epsilon,), digits.classes, subset=30, queries=1000, steps=100)
    ours = worst.worst_case(as_run(model), plan, judged, 30, tmp_path).held[epsilon]
    assert 5 <= theirs.sum() <= 25  # a radius that tells attacks apart
    assert (ours != theirs).sum() <= 1  # an attack that starts at random may miss one
