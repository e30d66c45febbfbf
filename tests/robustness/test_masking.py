"""Planted masks are caught, a sound network is not called one."""

import pytest
import torch
from small import as_run, part, trained_on

from ccn_kernels.robustness import data, masking, probes, worst
from ccn_kernels.robustness.data.splits import TensorSplit
from ccn_kernels.robustness.probes import Scaled

RADII = (0.05, 0.1)


@pytest.fixture(scope="module")
def plain():
    """A plain network that has learned digits, and those that it is judged on."""
    digits = data.load("digits")
    images, labels, _ = next(digits.train.batches(range(1000), 1000))
    return trained_on(images, labels), part(digits.test, 60)


def rows(model, split, folder, **options):
    plan = worst.plan("linf", RADII, 10, **{"subset": 20, "queries": 30, **options})
    found = worst.worst_case(as_run(model), plan, split, len(split), folder)
    images, labels, _ = next(split.batches(range(len(split)), len(split)))
    return {row.name: row for row in masking.check(masking.Probe(model, images, labels, found))}


def test_a_sound_network_is_not_called_masked(plain, tmp_path):
    model, split = plain
    found = rows(model, split, tmp_path)
    assert len(found) == 11
    assert {row.verdict for row in found.values()} == {"holds"}, found
    assert masking.overall(list(found.values())) == "holds"
    assert all(row.why.endswith(".") and row.reference for row in found.values())


def test_logits_times_100_are_caught(plain, tmp_path):
    model, split = plain
    found = rows(Scaled(model, 100).eval(), split, tmp_path)
    assert masking.overall(list(found.values())) == "masked"
    for name in ("exactly-zero gradients", "logit margins", "FGSM in float64 and on the margin",
                 "FGSM with the logits scaled", "unbounded PGD"):  # fmt: skip
        assert found[name].verdict == "masked", found[name]
    assert found["gradient against finite differences"].verdict == "holds"  # the margin's is right, whatever the scale


class Rounded(torch.nn.Module):
    """Images in few levels before the network, passed straight through by the gradient or not: a shattered one."""

    def __init__(self, model, straight):
        super().__init__()
        self.model, self.straight = model, straight

    def forward(self, images):
        levels = (images * 8).round() / 8
        smooth = images if self.straight else 1e-9 * images
        return self.model(smooth + (levels - smooth).detach())


def test_gradients_that_are_no_slope_are_caught(plain, tmp_path):
    model, split = plain
    row = rows(Rounded(model, straight=False).eval(), split, tmp_path)["gradient against finite differences"]
    assert row.verdict == "masked"
    assert row.numbers["relative error"] == pytest.approx(1)


class Misled(torch.nn.Module):
    """The network's logits with the gradient of other ones."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        wrong = -self.model(images)
        return wrong + (self.model(images) - wrong).detach()


def test_a_gradient_that_leads_astray_loses_to_what_needs_none(plain, tmp_path):
    model, split = plain
    found = rows(Misled(model).eval(), split, tmp_path, sources=[as_run(model, "the sound one")])
    assert found["black box against white box"].verdict == "masked"
    assert found["black box against FGSM"].verdict == "masked"
    assert found["unbounded PGD"].verdict == "masked"
    assert found["gradient against finite differences"].verdict == "masked"


def test_a_check_that_cannot_be_made_is_said_to_be_none(plain, tmp_path):
    model, split = plain

    class Half(torch.nn.Module):
        def forward(self, images):
            if images.dtype != torch.float32:
                raise RuntimeError("float32 alone")
            return model(images)

    found = rows(Half().eval(), split, tmp_path, subset=0)
    for name in ("black box against white box", "black box against FGSM", "gradient against finite differences"):
        assert found[name].verdict == "not measured"
    assert masking.overall(list(found.values())) == "holds"
    assert "float64" not in "".join(found["FGSM in float64 and on the margin"].numbers)


def test_one_step_that_beats_many_is_caught(plain, tmp_path):
    model, split = plain
    plan = worst.plan("linf", RADII, 10, subset=0)
    found = worst.worst_case(as_run(model), plan, split, len(split), tmp_path)
    found.alone[masking.PGD] = {0.05: found.right, 0.1: found.right}
    images, labels, _ = next(split.batches(range(60), 60))
    caught = {row.name: row.verdict for row in masking.check(masking.Probe(model, images, labels, found))}
    assert caught["one step against many"] == "masked"
    found.alone[masking.PGD] = {0.05: torch.zeros(60, dtype=torch.bool), 0.1: found.right}
    caught = {row.name: row.verdict for row in masking.check(masking.Probe(model, images, labels, found))}
    assert caught["accuracy falls as ε grows"] == "masked"


@pytest.mark.parametrize(("gap", "verdict"), [(-3, "holds"), (4.9, "holds"), (5, "suspicious"), (15, "masked")])
def test_verdicts_follow_the_gap(gap, verdict):
    assert masking.by_gap(gap) == verdict


def test_what_is_said_of_black_boxes_follows_from_the_numbers(plain, tmp_path):
    """FGSM's accuracy is of the images that each black box saw, fewer for a slow one."""
    row = rows(*plain, tmp_path)["black box against FGSM"]
    black = {name: value for name, value in row.numbers.items() if not name.startswith("FGSM on ")}
    gaps = []
    for name, value in black.items():
        attack, radius = name.split(", ε")
        gaps.append(row.numbers[f"FGSM on {attack}'s images, ε{radius}"] - value)
    assert len(row.numbers) == 2 * len(black)
    assert (f"takes {max(gaps):.1f} points more" in row.why) == (max(gaps) > 0)


def test_a_network_that_is_never_right_has_no_margins(plain, tmp_path):
    model, split = plain
    wrong = TensorSplit(split.images, (model(split.images).argmax(1) + 1) % 10, "cpu")
    assert rows(model, wrong, tmp_path, subset=0)["logit margins"].verdict == "not measured"


def test_the_scale_of_the_logits_alone_moves_fgsm(plain):
    model, split = plain
    images, labels, _ = next(split.batches(range(60), 60))
    found = probes.by_scale(model, images, labels, 0.1)
    assert found[100.0] > found[1.0] + 10
