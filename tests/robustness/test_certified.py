"""Certified radii: exact where they are known, and below every attack."""

import json
import math

import foolbox
import pytest
import torch
from small import as_run
from torch import nn

from ccn_kernels import CompactConv2d, CompactLinear, models
from ccn_kernels.robustness import certified_report, data
from ccn_kernels.robustness.attacks import FGSM, PGD, DeepFool, exact
from ccn_kernels.robustness.certified import METHODS, NORMS, Certifier, certified_radius
from ccn_kernels.robustness.data.splits import TensorSplit

VARIANTS = ("sm", "brelu", "bn", "l2sm", "ccn")


pytestmark = pytest.mark.usefixtures("one_thread")


def grey(count):
    """Images away from 0 and 1, where a ball is whole."""
    return torch.rand(count, 1, 3, 3, dtype=torch.float64).mul(0.1).add(0.45)


def nearest_border(linear, images, labels, norm):
    """The closed form of a linear network."""
    logits, rows = linear(images.flatten(1)), linear.weight
    gaps = logits.gather(1, labels.view(-1, 1)) - logits
    differences = rows[labels].unsqueeze(1) - rows
    lengths = differences.norm(p=1 if norm == "linf" else 2, dim=-1)
    return torch.where(lengths == 0, torch.inf, gaps / lengths).amin(1).detach()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("head", ["plain", "compact"])
@pytest.mark.parametrize("method", METHODS)
def test_one_linear_layer_has_the_radius_of_its_nearest_border(norm, head, method):
    plain = nn.Linear(9, 4, bias=head == "plain").double()
    with torch.no_grad():
        plain.weight.mul_(1e-2 if head == "plain" else 1)
        plain.weight.add_(torch.eye(4, 9))
    images = grey(6)
    labels = plain(images.flatten(1)).argmax(1)
    known = nearest_border(plain, images, labels, norm)
    layer = plain if head == "plain" else CompactLinear.from_linear(plain, alpha=2.0)  # borders stay where they are
    found = certified_radius(nn.Sequential(nn.Flatten(), layer), images, labels, norm, method=method)
    inside = known < 0.4 if norm == "linf" else known < 0.45  # what does not reach 0 or 1
    exactly = (norm, method) in {("linf", "interval"), ("linf", "hybrid"), ("linf", "linearised"), ("l2", "lipschitz"),
                                 ("l2", "hybrid"), ("l2", "linearised")}  # fmt: skip
    assert inside.any()
    assert (found[inside] <= (1 + 1e-6) * known[inside]).all()
    if exactly:
        torch.testing.assert_close(found[inside], known[inside], rtol=3e-3, atol=0)


def small(variant):
    """Table 10's layers, fewer of them, for images of 14x14."""
    compact, last = variant == "ccn", variant in ("ccn", "l2sm")
    convolution = CompactConv2d(1, 8, 3, activation="relu") if compact else nn.Conv2d(1, 8, 3)
    norm = nn.BatchNorm2d(8) if variant == "bn" else nn.Identity()
    activation = nn.Hardtanh(0.0, 1.0) if variant == "brelu" else nn.ReLU()
    hidden = CompactLinear(8 * 36, 24, activation="relu") if compact else nn.Linear(8 * 36, 24)
    head = CompactLinear(24, 10, alpha=4.0) if last else nn.Linear(24, 10)
    return nn.Sequential(
        models.Center(), convolution, norm, activation, nn.MaxPool2d(2), nn.Flatten(), hidden, nn.ReLU(), head
    )


@pytest.fixture(scope="module")
def digits():
    whole = data.load("digits")
    train, test = (next(split.batches(range(count), count)) for split, count in ((whole.train, 600), (whole.test, 60)))
    return [(nn.functional.avg_pool2d(images, 2).clamp(0, 1), labels) for images, labels, _ in (train, test)]


@pytest.fixture(scope="module", params=VARIANTS)
def trained(request, digits):
    """A trained network and test images that it is right about."""
    torch.manual_seed(0)
    model, ((images, labels), (x, y)) = small(request.param), digits
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    right = model.eval()(x).argmax(1) == y
    assert right.float().mean() > 0.8
    return model, x[right][:4], y[right][:4]


@pytest.mark.parametrize("method", ["hybrid", "linearised"])
def test_no_attack_succeeds_within_a_certified_radius(trained, method):
    model, images, labels = trained
    radii = {norm: certified_radius(model, images, labels, norm, method=method) for norm in NORMS}
    assert all((radius > 0).all() for radius in radii.values())
    with exact(model):
        for image, label, radius in zip(images.split(1), labels.split(1), radii["linf"].tolist(), strict=True):
            for attack in (FGSM((radius, 0.5 * radius)), PGD((radius,), steps=10)):
                assert not attack(model, image, label)["fooled"].any()
        outcome = DeepFool()(model, images, labels)
        distances = outcome["ratio"] * images.flatten(1).norm(dim=1)
        assert outcome["fooled"].any()
        assert (distances > radii["l2"])[outcome["fooled"]].all()
        for epsilon in radii["l2"].unique().tolist():
            attacked = foolbox.attacks.L2PGD(steps=10)(
                foolbox.PyTorchModel(model, (0, 1)), images, labels, epsilons=epsilon
            )
            assert not attacked[2][radii["l2"] >= epsilon].any()


def test_methods_are_in_order(trained):
    model, images, labels = trained
    for norm in NORMS:
        radius = {method: certified_radius(model, images[:2], labels[:2], norm, method=method) for method in METHODS}
        for better, worse in (("linearised", "hybrid"), ("hybrid", "interval"), ("hybrid", "lipschitz")):
            assert (radius[better] >= 0.99 * radius[worse]).all()


def test_what_is_wrong_already_has_no_radius(trained):
    model, images, labels = trained
    assert (certified_radius(model, images, (labels + 1) % 10, method="hybrid") == 0).all()


def test_the_model_is_left_as_it_was():
    model = small("ccn").train()
    certified_radius(model, torch.rand(1, 1, 14, 14), torch.tensor([0]), method="hybrid")
    assert model.training
    assert all(weight.dtype == torch.float32 and weight.grad is None for weight in model.parameters())


def test_a_network_that_is_certain_has_the_largest_radius():
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([1.0, 0.0]))
    images, labels = grey(2), torch.tensor([0, 0])
    assert certified_radius(model, images, labels, "linf", method="hybrid").tolist() == pytest.approx([1, 1], rel=5e-3)
    assert certified_radius(model, images, labels, "l2").tolist() == pytest.approx([3, 3], rel=5e-3)


@pytest.fixture
def linear():
    """A network that needs no training, and four images that it is right about."""
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(9, 3)), grey(4).float()
    return as_run(model), TensorSplit(images, model(images).argmax(1), "cpu")


def test_the_report_fails_where_an_attack_contradicts_a_proof(linear, tmp_path, monkeypatch):
    found = certified_report.measure(*linear, 4, ["hybrid"], tmp_path / "certified.json")
    for norm in NORMS:
        pairs = zip(found["certified"]["hybrid"][norm], found["attacked"][norm], strict=True)
        assert all(0 < certified < attacked for certified, attacked in pairs)
    monkeypatch.setattr(
        certified_report, "certified_radius", lambda model, images, *rest, **options: torch.ones(len(images)).double()
    )
    with pytest.raises(RuntimeError, match="PGD succeeds within the certified linf radius of images"):
        certified_report.measure(*linear, 4, ["interval"], tmp_path / "certified.json")


def test_the_report_keeps_what_was_done(linear, tmp_path, monkeypatch):
    run, split = linear
    path, done = tmp_path / "certified.json", []
    monkeypatch.setattr(certified_report, "certified_radius", lambda model, images, labels, norm, method: (
        done.append((method, norm)), torch.full((len(images),), 1e-3).double())[1])  # fmt: skip
    certified_report.measure(run, split, 4, ["hybrid"], path)
    found = certified_report.measure(run, split, 4, ["hybrid", "interval"], path)
    assert done == [(method, norm) for method in ("hybrid", "interval") for norm in NORMS]
    assert json.loads(path.read_text()) == found
    for other in (as_run(run.model, "other weights"), run):
        certified_report.measure(other, split, 3 if other is run else 4, ["hybrid"], path)
    assert len(done) == 8


def test_the_reports_table_has_medians_of_what_is_right():
    found = {"network": "CCN", "images": 3, "right": [True, False, True],
             "certified": {"hybrid": {"linf": [1e-3, 1.0, 3e-3]}, "interval": {"linf": [2e-3, 1.0, 1e-3]}},
             "attacked": {"linf": [0.1, 0.5, None]}}  # fmt: skip
    row = certified_report.table([found], "linf", ["hybrid", "interval"]).splitlines()[-1]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "CCN", "2 of 3", "2.0e-03", "1.5e-03", "inf", "1.0e-02",
    ]  # fmt: skip


def test_a_layer_that_stands_in_two_places_counts_twice():
    half, head = nn.Linear(9, 9), nn.Linear(9, 2)
    certifier = Certifier(nn.Sequential(nn.Flatten(), half, half, head), (1, 3, 3))
    assert certifier.names == ["0", "1", "2"]


def test_what_cannot_be_proved_is_said():
    class Odd(nn.ReLU):
        def forward(self, input):
            return input.square()

    with pytest.raises(TypeError, match="no bound is known of 0, a Odd"):
        certified_radius(nn.Sequential(Odd(), nn.Flatten(), nn.Linear(9, 2)), grey(1), torch.tensor([0]))
    images, labels = torch.rand(2, 1, 28, 28), torch.tensor([0, 1])
    with pytest.raises(TypeError, match="no bound is known of conv1_lrn, a LocalResponseNorm"):
        certified_radius(models.paper_mnist_cnn("lrn"), images, labels)
    with pytest.raises(TypeError, match=r"nn.Sequential, got a Linear"):
        certified_radius(nn.Linear(2, 2), images, labels)
    flat = nn.Sequential(nn.Flatten(), CompactLinear(784, 2, delta=0.0))
    with pytest.raises(ValueError, match="delta = 0"):
        certified_radius(flat, images, labels)
    with pytest.raises(ValueError, match="end in a linear layer"):
        certified_radius(nn.Sequential(nn.Flatten(), nn.Linear(784, 2), nn.ReLU()), images, labels)
    with pytest.raises(ValueError, match="norm must be one of"):
        certified_radius(flat, images, labels, "l1")
    with pytest.raises(ValueError, match="method must be one of"):
        certified_radius(flat, images, labels, method="magic")
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        certified_radius(flat, images + math.pi, labels)
    for layer in (nn.Conv2d(1, 1, 3, padding="same"), nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")):
        with pytest.raises(ValueError, match="zeros in integer padding"):
            certified_radius(nn.Sequential(layer, nn.Flatten(), nn.Linear(784, 2)), images, labels)
    with pytest.raises(ValueError, match="max-pooling without padding"):
        certified_radius(nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Flatten(), nn.Linear(784, 2)), images, labels)
