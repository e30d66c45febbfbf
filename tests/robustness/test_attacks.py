import pytest
import torch
import torch.nn.functional as F

from ccn_kernels import models
from ccn_kernels.robustness import attacks


def test_accuracy_under_fgsm_is_known_where_the_border_is_known(bright_or_dark):
    model, images, labels = bright_or_dark
    found = attacks.accuracy_under(attacks.fgsm(), model, images, labels, [0.0, 0.1, 0.2, 0.5])
    # the images lie 0.05, 0.15 and 0.4 from the border, on either side
    assert found.accuracy == pytest.approx({0.0: 100, 0.1: 200 / 3, 0.2: 100 / 3, 0.5: 0})
    assert found.zero_gradients == 0


def test_an_image_that_was_wrong_stays_an_error(bright_or_dark):
    model, images, labels = bright_or_dark
    found = attacks.accuracy_under(attacks.fgsm(), model, images, 1 - labels, [0.0, 0.1, 0.5])
    assert set(found.accuracy.values()) == {0}


def test_fgsm_is_one_signed_gradient_step_inside_the_unit_interval():
    model = models.paper_mnist_cnn("ccn").eval()
    images, labels = torch.rand(4, 1, 28, 28), torch.arange(4)
    attacked = attacks.adversarial_images(model, images, labels, 0.1)
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(images), labels), images)
    torch.testing.assert_close(attacked, (images + 0.1 * gradient.sign()).clamp(0, 1).detach())


def test_pgd_harms_at_least_as_much_as_fgsm():
    torch.manual_seed(0)
    model = models.paper_mnist_cnn("sm").eval()
    images = torch.rand(32, 1, 28, 28)
    labels = attacks.predictions(model, images)
    by = {
        name: attacks.accuracy_under(attack, model, images, labels, [0.02]).accuracy[0.02]
        for name, attack in (("fgsm", attacks.fgsm()), ("pgd", attacks.pgd()))
    }
    assert by["pgd"] <= by["fgsm"] < 100


def test_gradients_that_are_exactly_zero_are_counted(bright_or_dark):
    model, images, labels = bright_or_dark

    class Saturated(torch.nn.Module):
        def forward(self, images):
            return model(images) * 1e6

    found = attacks.accuracy_under(attacks.fgsm(), Saturated(), images, labels, [0.5])
    assert found.zero_gradients == 1
    assert found.accuracy[0.5] == 100  # which is why the share is reported


def test_batches_do_not_change_the_result(bright_or_dark):
    model, images, labels = bright_or_dark
    results = {
        attacks.accuracy_under(attacks.fgsm(), model, images, labels, [0.1], batch_size=size).accuracy[0.1]
        for size in (1, 4, 6)
    }
    assert len(results) == 1
