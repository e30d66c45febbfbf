"""The images that networks are trained on to withstand attacks."""

import dataclasses

import pytest
import torch
from small import trained_on

from ccn_kernels import models
from ccn_kernels.robustness import adversarial, balls, data
from ccn_kernels.robustness.attacks import adversarial_images
from ccn_kernels.robustness.config import TrainConfig

PGD = TrainConfig(adversarial_epsilon=0.2, adversarial_steps=5)


@pytest.fixture(scope="module")
def problem():
    images, labels, _ = next(data.load("digits").train.batches(range(64), 64))
    return trained_on(images, labels), images, labels


def loss(model, images, labels):
    return torch.nn.functional.cross_entropy(model(images), labels).item()


def test_fgsm_s_are_foolbox_s():
    model = models.paper_mnist_cnn("sm").eval()
    images, labels = torch.rand(4, 1, 28, 28), torch.arange(4)
    found = adversarial.fgsm_images(model, images, labels, 0.2)
    torch.testing.assert_close(found, adversarial_images(model, images, labels, 0.2))


@pytest.mark.parametrize("epsilon", [0.05, torch.tensor(0.2)])
def test_pgd_s_do_more_harm_than_fgsm_s_and_stay_in_the_ball(problem, epsilon):
    model, images, labels = problem
    crafted = adversarial.pgd_images(model, images, labels, epsilon, 7)
    assert not crafted.requires_grad
    assert not balls.outside(images, crafted, float(epsilon), "linf")
    one_step = adversarial.fgsm_images(model, images, labels, epsilon)
    assert loss(model, crafted, labels) > loss(model, one_step, labels) > loss(model, images, labels)


def test_each_start_is_another(problem):
    model, images, labels = problem
    first, second = (adversarial.pgd_images(model, images, labels, 0.1, 1) for _ in range(2))
    assert not torch.equal(first, second)


def test_what_a_step_trains_on(problem):
    model, images, labels = problem
    radius = torch.tensor(0.1)
    clean = adversarial.batch(model, images, labels, TrainConfig(), radius)
    assert clean[0] is images
    both, twice = adversarial.batch(model, images, labels, TrainConfig(adversarial_epsilon=0.2), radius)
    assert torch.equal(both[:64], images)
    torch.testing.assert_close((both[64:] - images).abs().amax(), radius)
    assert torch.equal(twice, torch.cat([labels, labels]))
    attacked, same = adversarial.batch(model, images, labels, PGD, radius)
    assert same is labels
    torch.testing.assert_close((attacked - images).abs().amax(), radius)


def test_the_radius_grows_to_its_value():
    growing = dataclasses.replace(PGD, adversarial_warmup=0.5)
    radii = [adversarial.radius(growing, step, 8) for step in range(8)]
    assert radii == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.2, 0.2, 0.2, 0.2])
    assert {adversarial.radius(PGD, step, 8) for step in range(8)} == {0.2}
