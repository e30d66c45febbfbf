"""The stronger attacks: on borders that are known, beside a second implementation, and never out of bounds."""

import numpy as np
import pytest
import torch
from small import as_run, trained_on

from ccn_kernels.robustness import attacks, balls, data, evaluation, losses
from ccn_kernels.robustness.least import LeastChange
from ccn_kernels.robustness.sized import Noise, OneStep
from ccn_kernels.robustness.strong import APGD, BestTransfer, RestartedPGD, Square, TargetedAPGD

LEVELS = (0.1, 0.35, 0.45, 0.55, 0.65, 0.9)  # of bright_or_dark; 4x4 images: an L2 radius is 4 times an L-infinity one
RADII = {"linf": (0.04, 0.1, 0.2, 0.45), "l2": (0.16, 0.4, 0.8, 1.8)}
GRADIENTS = [
    lambda radii, norm: OneStep(radii, norm),
    lambda radii, norm: RestartedPGD(radii, norm, restarts=2),
    lambda radii, norm: RestartedPGD(radii, norm, loss="margin"),
    lambda radii, norm: APGD(radii, norm, steps=20),
    lambda radii, norm: APGD(radii, norm, loss="margin", steps=20),
]


@pytest.fixture(scope="module")
def network():
    """A small network that has learned something, and images that it gets right."""
    images, labels, _ = next(data.load("digits").train.batches(range(200), 200))
    model = trained_on(images, labels)
    assert (attacks.predictions(model, images) == labels).all()
    return model.requires_grad_(False), images[:40], labels[:40]


@pytest.mark.parametrize("norm", balls.NORMS)
@pytest.mark.parametrize("make", GRADIENTS)
def test_accuracy_is_known_where_the_border_is_known(bright_or_dark, tmp_path, norm, make):
    run, split = bright_or_dark
    attack = make(RADII[norm], norm)
    outcome = evaluation.evaluate(run, attack, split, None, tmp_path)
    # 0.05, 0.15 and 0.4 from the border, on either side
    assert evaluation.accuracy(outcome).tolist() == pytest.approx([100, 200 / 3, 100 / 3, 0])


@pytest.mark.parametrize("norm", balls.NORMS)
def test_the_least_change_is_the_distance_to_the_border(bright_or_dark, norm):
    run, split = bright_or_dark
    bright = slice(3, None)  # where the two classes tie, and FMN stops, this model says dark
    found = LeastChange("gradient", norm, steps=100)(run.model, split.images[bright], split.labels[bright])
    away = torch.tensor([level - 0.5 for level in LEVELS[bright]]) * (4 if norm == "l2" else 1)
    assert found["fooled"].all()
    torch.testing.assert_close(found["distance"], away, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("norm", balls.NORMS)
def test_black_boxes_fool_where_the_border_is_near_and_never_where_it_is_too_far(bright_or_dark, norm):
    run, split = bright_or_dark
    for attack in (Square(RADII[norm], norm, 200), BestTransfer(RADII[norm], norm, (run.model,), ("0",))):
        fooled = attack(run.model, split.images, split.labels)["fooled"]
        assert not fooled[:, 0].any()
        assert fooled[:, 1].tolist() == [False, False, True, True, False, False]
        assert fooled[[2, 3], 3].all()
    found = LeastChange("hsj", norm, steps=5)(run.model, split.images[1:3], split.labels[1:3])
    away = torch.tensor([0.15, 0.05]) * (4 if norm == "l2" else 1)
    assert (found["distance"] >= 0.999 * away).all()
    assert (found["distance"] <= 1.5 * away).all()


@pytest.mark.parametrize("norm", balls.NORMS)
def test_what_is_crafted_stays_in_its_ball_and_in_the_unit_interval(network, norm):
    model, images, labels = network
    images = images.round()  # at the walls
    radius = {"linf": 0.1, "l2": 1.0}[norm]
    for make in (*GRADIENTS, Square, Noise, TargetedAPGD):
        crafted = make((radius,), norm).craft(model, images, labels, radius)
        assert not balls.outside(images, crafted, radius, norm)
        assert not torch.equal(crafted, images)


def test_an_attack_that_leaves_its_ball_is_a_fault(bright_or_dark):
    run, split = bright_or_dark

    class Far(OneStep):
        def craft(self, model, images, labels, epsilon):
            return 1 - images

    with pytest.raises(RuntimeError, match="left"):
        Far((0.1,))(run.model, split.images, split.labels)


def test_a_seed_gives_the_same_images(network):
    model, images, labels = network
    for attack in (APGD((0.05,)), Square((0.05,), queries=20), RestartedPGD((0.05,), restarts=2)):
        crafted = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            crafted.append(attack.craft(model, images, labels, 0.05))
        assert torch.equal(crafted[0], crafted[1])
        assert not torch.equal(crafted[0], crafted[2])


@pytest.mark.parametrize("norm", balls.NORMS)
def test_auto_pgd_is_as_strong_as_art_s(network, norm):
    from art.attacks.evasion import AutoProjectedGradientDescent

    model, images, labels = network
    radius = {"linf": 0.06, "l2": 0.9}[norm]
    theirs = AutoProjectedGradientDescent(
        classifier(model), norm=np.inf if norm == "linf" else 2, eps=radius, eps_step=2 * radius, max_iter=30,
        nb_random_init=1, loss_type="cross_entropy", batch_size=64, verbose=False,
    )  # fmt: skip
    np.random.seed(0)
    attacked = torch.from_numpy(theirs.generate(images.numpy(), labels.numpy()))
    accuracy = [(attacks.predictions(model, attacked) == labels).float().mean().item()]
    for loss in ("ce", "dlr"):
        crafted = APGD((radius,), norm, loss, steps=30).craft(model, images, labels, radius)
        accuracy.append((attacks.predictions(model, crafted) == labels).float().mean().item())
    assert 0.05 < accuracy[0] < 0.95  # or nothing is compared
    assert max(accuracy[1:]) <= accuracy[0] + 0.051  # two images


def test_square_is_as_strong_as_art_s(network):
    from art.attacks.evasion import SquareAttack

    model, images, labels = network
    theirs = SquareAttack(classifier(model), eps=0.2, max_iter=100, batch_size=64, verbose=False)
    np.random.seed(0)
    attacked = torch.from_numpy(theirs.generate(images.numpy(), labels.numpy()))
    accuracy = (attacks.predictions(model, attacked) == labels).float().mean().item()
    crafted = Square((0.2,), queries=100).craft(model, images, labels, 0.2)
    ours = (attacks.predictions(model, crafted) == labels).float().mean().item()
    assert accuracy < 0.95
    assert ours <= accuracy + 0.051


def classifier(model):
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(model, torch.nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0, 1), device_type="cpu")


def test_strength_is_ordered(network):
    model, images, labels = network
    held = [int((~attack(model, images, labels)["fooled"]).sum())
            for attack in (Noise((0.08,)), OneStep((0.08,)), APGD((0.08,)), TargetedAPGD((0.08,)))]  # fmt: skip
    assert held[0] > held[1] >= max(held[2:])


def test_losses_are_those_of_their_papers():
    logits, labels = torch.tensor([[3.0, 1.0, 0.0, -2.0], [0.0, 2.0, 1.5, 1.0]]), torch.tensor([0, 2])
    targets = torch.tensor([2, 1])
    assert losses.margin(logits, labels, targets).tolist() == [-2.0, 0.5]
    torch.testing.assert_close(losses.difference_of_logits_ratio(logits, labels, targets), torch.tensor([-2 / 3, 0.5]))
    expected = torch.tensor([-3 / (3 - (0 - 2) / 2), 0.5 / (2 - (1 + 0) / 2)])
    torch.testing.assert_close(losses.targeted_ratio(logits, labels, targets), expected)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_ratio_does_not_see_the_scale_of_the_logits(network, scale):
    model, images, labels = network

    class Scaled(torch.nn.Module):
        def forward(self, x):
            return scale * model(x)

    found = []
    for each in (model, Scaled()):
        torch.manual_seed(0)
        found.append(APGD((0.08,), loss="dlr")(each, images, labels)["fooled"].float().mean().item())
    assert found[0] == pytest.approx(found[1], abs=0.06)
    assert found[0] > 0.1


def test_wrong_settings_are_refused():
    for make in (APGD, Square, RestartedPGD):
        with pytest.raises(ValueError, match="norm must be one of"):
            make((0.1,), "l3")
        with pytest.raises(ValueError, match="epsilons must be"):
            make((1.5,), "linf")
    assert APGD((1.5,), "l2").epsilons == (1.5,)
    with pytest.raises(ValueError, match="kind must be"):
        LeastChange("fab")


def test_speed_is_told(bright_or_dark, tmp_path):
    run, split = bright_or_dark
    outcome = evaluation.evaluate(run, APGD((0.1,)), split, None, tmp_path)
    assert evaluation.images_per_second(outcome) > 0
    assert "images/s" in evaluation.summary(run, APGD((0.1,)), outcome)


def test_only_the_images_that_are_asked_for_are_attacked(bright_or_dark, tmp_path):
    run, split = bright_or_dark
    some = torch.tensor([1, 4, 5])
    outcome = evaluation.evaluate(run, OneStep((0.2,), batch_size=2), split, None, tmp_path, among=some)
    assert outcome["index"].tolist() == [1, 4, 5]
    assert outcome["fooled"][:, 0].tolist() == [True, True, False]
    others = evaluation.evaluate(run, OneStep((0.2,), batch_size=2), split, None, tmp_path, among=some[:2])
    assert others["index"].tolist() == [1, 4]
    assert len(list(tmp_path.iterdir())) == 2


def test_no_image_at_all_is_no_fault(network):
    model, images, labels = network
    assert APGD((0.1,))(model, images[:0], labels[:0])["fooled"].shape == (0, 1)
    assert as_run(model).title == "SM"
