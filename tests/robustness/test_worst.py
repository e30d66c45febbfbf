"""The minimum over attacks: what is struck off, who sees what, and that it is gone on with."""

import dataclasses
from typing import ClassVar

import pytest
import torch
from small import as_run

from ccn_kernels.robustness import worst
from ccn_kernels.robustness.sized import OneStep, Sized
from ccn_kernels.robustness.worst import Plan

RADII = (0.1, 0.2, 0.5)


@dataclasses.dataclass(frozen=True)
class Picky(Sized):
    """Fools a model on the images of these brightnesses, at any radius; counts what it sees."""

    levels: tuple[float, ...] = (2.0,)
    seen: ClassVar[list] = []
    kind: ClassVar[str] = "picky"

    def craft(self, model, images, labels, epsilon):
        levels = images.flatten(1).mean(1)
        self.seen.append((epsilon, [round(level, 2) for level in levels.tolist()]))
        chosen = (levels[:, None] - torch.tensor(self.levels)).abs().amin(1) < 1e-3
        shift = torch.where(labels == 1, -epsilon, epsilon) * chosen
        return (images + shift.view(-1, 1, 1, 1)).clamp(0, 1)


@pytest.fixture(autouse=True)
def forget():
    Picky.seen.clear()


def test_an_image_that_one_attack_fools_is_seen_by_none_after_it(bright_or_dark, tmp_path):
    run, split = bright_or_dark  # 0.05, 0.15 and 0.4 from the border, on either side
    plan = Plan("linf", RADII, (OneStep(RADII),), (Picky(RADII, levels=(0.1, 0.9)),))
    found = worst.worst_case(run, plan, split, 6, tmp_path)
    assert found.minimum == pytest.approx({0.1: 200 / 3, 0.2: 100 / 3, 0.5: 0})
    assert Picky.seen == [(0.1, [0.1, 0.35, 0.65, 0.9]), (0.2, [0.1, 0.9])]  # at 0.5 nothing is left
    one, picky = found.lines
    assert one.broke == {0.1: 2, 0.2: 4, 0.5: 6}
    assert picky.broke == {0.1: 0, 0.2: 0, 0.5: 0}
    assert one.alone == found.minimum
    assert not picky.alone
    assert picky.images == 4 + 2
    assert picky.images_per_second > 0


def test_what_a_small_radius_fools_every_larger_one_does(bright_or_dark, tmp_path):
    run, split = bright_or_dark

    @dataclasses.dataclass(frozen=True)
    class Only(Picky):
        """Works at its smallest radius alone."""

        def craft(self, model, images, labels, epsilon):
            return images if epsilon > 0.1 else super().craft(model, images, labels, epsilon)

    plan = Plan("linf", RADII, (Only(RADII, levels=(0.45,)),), ())
    found = worst.worst_case(run, plan, split, 6, tmp_path)
    assert found.minimum == pytest.approx(dict.fromkeys(RADII, 500 / 6))
    assert found.lines[0].alone == pytest.approx({0.1: 500 / 6, 0.2: 100, 0.5: 100})


def test_images_that_were_wrong_stay_errors_and_are_not_attacked(bright_or_dark, tmp_path):
    run, split = bright_or_dark
    split._labels[:2] = 1 - split._labels[:2]
    found = worst.worst_case(run, Plan("linf", (0.01,), (OneStep((0.01,)),), (Picky((0.01,)),)), split, 6, tmp_path)
    assert found.minimum[0.01] == pytest.approx(400 / 6)
    assert Picky.seen == [(0.01, [0.45, 0.55, 0.65, 0.9])]


def test_black_boxes_come_last_and_see_the_first_images_whole(bright_or_dark, tmp_path):
    run, split = bright_or_dark
    plan = Plan("linf", (0.2,), (OneStep((0.2,)),), (), (Picky((0.2,), levels=(0.1, 0.45)),), subset=4)
    found = worst.worst_case(run, plan, split, 6, tmp_path)
    assert Picky.seen == [(0.2, [0.1, 0.35, 0.45, 0.55])]
    assert found.white[0.2].tolist() == [True, False, False, False, False, True]
    assert found.held[0.2].tolist() == [True, False, False, False, False, True]  # 0.1 + 0.2 is dark yet
    assert found.alone["picky-linf"][0.2].tolist() == [True, True, False, True]


def test_what_was_done_is_not_done_again(bright_or_dark, tmp_path):
    run, split = bright_or_dark
    plan = worst.plan("linf", RADII, 2, subset=2, queries=5)
    first = worst.worst_case(run, plan, split, 6, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = worst.worst_case(run, plan, split, 6, tmp_path)
    assert again.minimum == first.minimum == pytest.approx({0.1: 200 / 3, 0.2: 100 / 3, 0.5: 0})
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_plan_has_what_the_classes_allow(norm):
    titles = {classes: [attack.title for attack in worst.plan(norm, (0.2, 0.1), classes).survivors]
              for classes in (2, 3, 4)}  # fmt: skip
    assert not any("DLR" in title or "APGD-T" in title for title in titles[2])
    assert "APGD-DLR" in titles[3]
    assert not any("APGD-T" in title for title in titles[3])
    assert any("APGD-T" in title for title in titles[4])
    assert worst.plan(norm, (0.2, 0.1), 2).epsilons == (0.1, 0.2)


def test_other_networks_images_are_tried(bright_or_dark, tmp_path):
    run, split = bright_or_dark
    plan = worst.plan("linf", (0.2,), 2, sources=[as_run(run.model, "another")], subset=6, queries=2)
    found = worst.worst_case(run, plan, split, 6, tmp_path)
    assert found.lines[-1].title == "transfer, the best of 1"
    assert found.lines[-1].alone[0.2] == pytest.approx(100 / 3)
    assert found.lines[-1].settings["digests"] == ["another"]


def test_crafted_images_fool_where_any_attack_does(bright_or_dark):
    run, split = bright_or_dark
    crafted = worst.crafted(worst.plan("linf", (0.2,), 2), run.model, split.images, split.labels, 0.2)
    assert (run.model(crafted).argmax(1) != split.labels).tolist() == [False, True, True, True, True, False]
