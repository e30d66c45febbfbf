"""Attacks on models whose borders are known, and by a second implementation."""

import foolbox
import pytest
import torch
import torch.nn.functional as F
from small import as_run

from ccn_kernels import models
from ccn_kernels.robustness import attacks, evaluation
from ccn_kernels.robustness.attacks import FGSM, PGD, CarliniWagner, DeepFool, Transfer
from ccn_kernels.robustness.data.splits import TensorSplit

LEVELS = (0.1, 0.35, 0.45, 0.55, 0.65, 0.9)  # of bright_or_dark


def accuracies(found, attack, folder):
    run, split = found
    outcome = evaluation.evaluate(run, attack, split, None, folder)
    return dict(zip(attack.epsilons, evaluation.accuracy(outcome).tolist(), strict=True))


def test_accuracy_under_fgsm_is_known_where_the_border_is_known(bright_or_dark, tmp_path):
    # the images lie 0.05, 0.15 and 0.4 from the border, on either side
    found = accuracies(bright_or_dark, FGSM((0.0, 0.1, 0.2, 0.5)), tmp_path)
    assert found == pytest.approx({0.0: 100, 0.1: 200 / 3, 0.2: 100 / 3, 0.5: 0})


def test_an_image_that_was_wrong_stays_an_error(bright_or_dark, tmp_path):
    run, split = bright_or_dark
    wrong = TensorSplit(split.images, 1 - split.labels, "cpu")
    assert set(accuracies((run, wrong), FGSM((0.0, 0.1, 0.5)), tmp_path).values()) == {0}


def test_fgsm_is_one_signed_gradient_step_inside_the_unit_interval():
    model = models.paper_mnist_cnn("ccn").eval()
    images, labels = torch.rand(4, 1, 28, 28), torch.arange(4)
    attacked = attacks.adversarial_images(model, images, labels, 0.1)
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(images), labels), images)
    torch.testing.assert_close(attacked, (images + 0.1 * gradient.sign()).clamp(0, 1).detach())


def random_network(variant="sm", count=32):
    model = models.paper_mnist_cnn(variant).eval()
    images = torch.rand(count, 1, 28, 28)
    return model, images, attacks.predictions(model, images)


def test_pgd_harms_at_least_as_much_as_fgsm():
    model, images, labels = random_network()
    fooled = [attack(model, images, labels)["fooled"].sum() for attack in (FGSM((0.02,)), PGD((0.02,)))]
    assert fooled[1] >= fooled[0] > 0


@pytest.mark.parametrize("form", ["today", "2018"])
def test_deepfool_finds_the_nearest_border(bright_or_dark, form):
    run, split = bright_or_dark
    found = DeepFool(form)(run.model, split.images, split.labels)
    ratios = torch.tensor([abs(level - 0.5) / level for level in LEVELS])
    assert found["fooled"].all()
    torch.testing.assert_close(found["ratio"], ratios, rtol=0.1, atol=5e-3)  # it steps over the border a little


def test_the_form_of_2018_is_today_s_until_a_wall_is_met():
    model, images, labels = random_network(count=8)
    inside, walls = 0.4 + 0.2 * images, images.round()
    for x, alike in ((inside, True), (walls, False)):
        labels = attacks.predictions(model, x)
        today, then = (
            attacks.run_foolbox(attack(steps=10, overshoot=0.02), model, x, labels, None)[0]
            for attack in (foolbox.attacks.L2DeepFoolAttack, attacks.ClippedDeepFool)
        )
        assert torch.allclose(today, then, atol=1e-5) == alike


def test_accuracy_at_a_ratio_and_rho_follow_equations_8_and_9():
    outcome = {
        "right": torch.tensor([True, True, True, False]),
        "fooled": torch.tensor([True, True, False, True]),
        "ratio": torch.tensor([0.1, 0.3, 0.05, 0.0]),
    }
    assert evaluation.accuracy_at_ratio(outcome, 0.1) == 50
    assert evaluation.accuracy_at_ratio(outcome, 0.3) == 25  # the third was never fooled
    assert evaluation.robustness(outcome) == pytest.approx((0.1 + 0.3 + 0.05) / 4)


def test_carlini_and_wagner_reach_the_second_class_and_never_with_a_black_image():
    model, images, labels = random_network(count=8)
    labels[0] = (labels[0] + 1) % 10  # wrong before the attack: not attacked
    found = CarliniWagner(steps=100, search_steps=4, stepsize=5e-2)(model, images, labels)
    assert found["fooled"].tolist() == [False] + [True] * 7
    assert (found["distance"][1:] > 0).all()


def test_a_failed_carlini_and_wagner_is_no_success(bright_or_dark):
    """Foolbox returns a black image then, which this model puts into the class that is aimed at."""
    run, split = bright_or_dark
    bright = split.images[-1:]
    found = CarliniWagner(steps=1, search_steps=1)(run.model, bright, torch.tensor([1]))
    assert not found["fooled"].any()


def test_images_for_another_network_are_those_of_its_own_fgsm():
    model, images, labels = random_network()
    other = models.paper_mnist_cnn("ccn").eval()
    found = Transfer(other, "0", (0.1, 0.3))(model, images, labels)
    for index, epsilon in enumerate((0.1, 0.3)):
        crafted = attacks.adversarial_images(other, images, labels, epsilon)
        assert torch.equal(found["fooled"][:, index], attacks.predictions(model, crafted) != labels)
    own = Transfer(model, "0", (0.1,))(model, images, labels)
    assert torch.equal(own["fooled"], FGSM((0.1,))(model, images, labels)["fooled"])
    assert own["agrees"].all()


def test_gradients_that_are_exactly_zero_are_counted(bright_or_dark, tmp_path):
    run, split = bright_or_dark

    class Saturated(torch.nn.Module):
        def forward(self, images):
            return run.model(images) * 1e6

    found = evaluation.evaluate(as_run(Saturated()), FGSM((0.5,)), split, None, tmp_path)
    assert found["zero_gradient"].all()
    assert evaluation.accuracy(found).item() == 100  # which is why the share is reported


def test_zero_gradients_of_a_transfer_are_those_of_its_source(bright_or_dark, tmp_path):
    run, split = bright_or_dark

    class Saturated(torch.nn.Module):
        def forward(self, images):
            return run.model(images) * 1e6

    saturated = as_run(Saturated())
    for target, source, share in ((run, saturated, True), (saturated, run, False)):
        attack = Transfer(source.model, f"{share}", (0.5,))
        found = evaluation.evaluate(target, attack, split, None, tmp_path)
        assert found["zero_gradient"].all() == found["zero_gradient"].any() == share


@pytest.mark.parametrize("epsilons", [(), (0.1, 1.5), (-0.1,), (float("nan"),)])
def test_radii_outside_the_unit_interval_are_refused(epsilons):
    for make in (FGSM, PGD, lambda radii: Transfer(torch.nn.Identity(), "0", radii)):
        with pytest.raises(ValueError, match="epsilons must be"):
            make(epsilons)


def test_attacked_networks_have_no_gradients_and_no_tf32_and_are_given_back():
    model = models.paper_mnist_cnn("ccn")
    model.fc1.requires_grad_(False)
    before = {name: weight.requires_grad for name, weight in model.named_parameters()}
    arithmetic = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with attacks.exact(model, model):
        assert not any(weight.requires_grad for weight in model.parameters())
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == before
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == arithmetic


@pytest.mark.parametrize("attack", [FGSM, PGD])
def test_batches_do_not_change_the_result(bright_or_dark, tmp_path, attack):
    results = {accuracies(bright_or_dark, attack((0.1,), batch_size=size), tmp_path)[0.1] for size in (1, 4, 6)}
    assert len(results) == 1


def test_a_gpu_gets_larger_batches_and_a_cpu_what_it_had():
    attack = FGSM((0.1,))
    assert attacks.sized_for("cpu", attack) is attack
    larger = attacks.sized_for("cuda:0", attack)
    assert (larger.batch_size, larger.epsilons) == (1000, (0.1,))
