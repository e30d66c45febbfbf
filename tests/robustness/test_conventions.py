"""Networks that are not what attacks expect: found, named, explained."""

import pytest
import torch

from ccn_kernels import models
from ccn_kernels.robustness import contract

IMAGES = torch.rand(32, 3, 8, 8)


class Brightest(torch.nn.Module):
    """The class is the channel that is brightest, by images in [0, 1] less an offset and over a scale."""

    def __init__(self, change=lambda logits: logits, scale=1.0, offset=0.0):
        super().__init__()
        self.change, self.scale, self.offset = change, scale, offset

    def forward(self, images):
        return self.change(10 * ((images / self.scale + self.offset).mean((2, 3))))


LABELS = IMAGES.mean((2, 3)).argmax(1)


def refused(model, match, images=IMAGES, labels=LABELS, classes=3):
    with pytest.raises(ValueError, match=match):
        contract.check(model, images, labels, classes)


def test_logits_of_images_in_the_unit_interval_pass():
    contract.check(Brightest(), IMAGES, LABELS, 3)
    contract.check(Brightest(lambda logits: logits.log_softmax(1)), IMAGES, LABELS, 3)  # logits, but for a constant


@pytest.mark.parametrize("variant", models.VARIANTS)
def test_the_paper_s_networks_keep_to_robustbench_s_conventions(variant):
    model = models.paper_mnist_cnn(variant).eval()
    contract.check(model, torch.rand(8, 1, 28, 28), torch.arange(8), 10)


def test_nan_and_infinity_are_named():
    def spoiled(logits):
        return torch.where(torch.arange(len(logits))[:, None] == 3, torch.nan, logits)

    refused(Brightest(spoiled), "NaN or infinite for 1 of 32 images")
    refused(Brightest(lambda logits: logits / 0), "NaN or infinite")


def test_probabilities_are_named():
    refused(Brightest(lambda logits: logits.softmax(1)), "probabilities.*Leave the last softmax out")


def test_randomness_is_named():
    refused(Brightest(lambda logits: logits + 0.1 * torch.randn_like(logits)), "random at test time")
    refused(torch.nn.Sequential(Brightest(), torch.nn.Dropout()).train(), "random at test time")


def test_logits_that_depend_on_the_batch_are_named():
    refused(Brightest(lambda logits: logits - logits.mean(0)), "depend on its batch")


def test_gradients_that_do_not_reach_the_images_are_named():
    refused(Brightest(lambda logits: logits.detach()), "carry no gradient")
    learned = torch.nn.Conv2d(3, 3, 1)  # has gradients of its own
    refused(torch.nn.Sequential(Binary(), learned, torch.nn.AvgPool2d(8), torch.nn.Flatten()), "carry no gradient")


class Binary(torch.nn.Module):
    def forward(self, images):
        return (images > 0.5).float()


@pytest.mark.parametrize(("change", "match"), [
    (lambda logits: logits[:, :2], "2 classes, the data set 3"),
    (lambda logits: logits[:, :, None], r"\[32, classes\], got \[32, 3, 1\]"),
    (lambda logits: (logits, logits), "got tuple"),
    (lambda logits: logits.argmax(1), r"got \[32\]"),
])  # fmt: skip
def test_other_shapes_are_named(change, match):
    refused(Brightest(change), match)


def test_a_model_that_does_not_run_is_named():
    refused(torch.nn.Linear(5, 3), "does not run on images of 3x8x8")


def test_images_outside_the_unit_interval_are_named():
    refused(Brightest(), r"images must lie in \[0, 1\], got \[0.*, 2\d\d", images=(IMAGES * 255).round())


class Thresholded(torch.nn.Module):
    """Tells bright from dark where it finds a border between them."""

    def __init__(self, border):
        super().__init__()
        self.border = border

    def forward(self, images):
        score = images.mean((1, 2, 3)) - self.border
        return torch.stack([-score, score], dim=1)


@pytest.mark.parametrize(("border", "named"), [(127.5, "0, 255"), (0.0, "-1, 1"), (-1e9, None), (0.5, None)])
def test_another_range_of_inputs_is_named(border, named):
    levels = torch.linspace(0.05, 0.95, 40)
    images, labels = levels.view(-1, 1, 1, 1).expand(-1, 1, 4, 4), (levels > 0.5).long()
    if named:
        refused(Thresholded(border), rf"seems to want images in \[{named}\]", images, labels, 2)
    else:  # at -1e9 it does badly in any range
        contract.check(Thresholded(border), images, labels, 2)
