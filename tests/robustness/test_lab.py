"""Cells measured on networks that are trained for a moment."""

import dataclasses

import pytest
import torch
from small import part

from ccn_kernels.robustness import data, features, paper, scales, substitute
from ccn_kernels.robustness.lab import Lab

COUNTS = dict.fromkeys(("fgsm", "pgd", "deepfool", "deepfool_2018", "transfer", "substitute"), 12) | {
    "cw": 4,
    "minimum": 2,
}
TINY = dataclasses.replace(
    scales.SMOKE, epochs=1, images=COUNTS, cw_steps=5, steps=2, substitute_rounds=2, substitute_epochs=1, features=60
)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    load = data.load

    def few(name, *args, **options):
        whole = load(name, *args, **options)
        if name == "folder":
            for split in (whole.train, whole.test):
                split.names, split.labels = split.names[:64], split.labels[:64]
            return whole
        return whole._replace(train=part(whole.train, 64), test=part(whole.test, 170))

    monkeypatch.setattr(data, "load", few)
    return Lab(TINY, tmp_path)


def cell(table, **wanted):
    return next(
        cell for cell in paper.cells(table) if all(getattr(cell, name) == value for name, value in wanted.items())
    )


@pytest.mark.parametrize("table", paper.TABLES)
def test_a_cell_of_every_attack_is_measured(lab, table):
    chosen = {(c.dataset, c.attack, c.metric): c for c in paper.cells(table) if c.method in ("SM", "CCN")}
    for each in chosen.values():
        found = lab.measure(each)
        assert found.images == (170 if each.attack == "none" and each.dataset != "ilsvrc_val" else found.images)
        assert 0 <= found.value <= 100 or each.attack == "cw"  # of which nothing may be right before it
        assert each.attack in ("none", "minimum") or 0 <= found.notes["zero gradients"] <= 100


def test_a_row_s_numbers_agree_where_tables_repeat_one_another(lab):
    one = lab.measure(cell(1, dataset="mnist", method="SM", epsilon=0.3))
    for table, wanted in ((7, {"source": "SM"}), (9, {"epsilon": 0.3}), (13, {"row": "none", "epsilon": 0.3})):
        assert lab.measure(cell(table, dataset="mnist", method="SM", **wanted)) == one
    l2sm = lab.measure(cell(1, dataset="mnist", method="L2SM", epsilon=0.3))
    assert lab.measure(cell(13, row="fc3", epsilon=0.3)) == l2sm


def test_a_compact_fc3_alone_is_l2sm_bit_for_bit(lab):
    from ccn_kernels.robustness.runs import Network
    from ccn_kernels.robustness.training import train

    config = TINY.config("mnist", {})
    states = []
    for name, network in (("fc3", Network("mnist_cnn", "sm", "fc3")), ("l2sm", Network("mnist_cnn", "l2sm"))):
        states.append(train(network, lab.data("mnist"), config, lab.folder / name).model.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_deepfool_s_accuracy_falls_with_the_ratio_that_is_allowed(lab):
    values = [
        lab.measure(c).value for c in paper.cells(2) if (c.dataset, c.method, c.attack) == ("mnist", "SM", "deepfool")
    ]
    assert values == sorted(values, reverse=True)


def test_the_substitute_sees_no_image_that_it_is_judged_on(lab, monkeypatch):
    seen = []
    monkeypatch.setattr(substitute, "train", lambda oracle, images, *args, **kwargs: seen.append(images) or oracle)
    outcome = lab.outcome(cell(6, method="SM"), lab.run("mnist", "SM"))
    (images,) = seen
    assert torch.equal(images, lab.data("mnist").test.images[: substitute.HELD_OUT])
    assert len(outcome["fooled"]) == 12
    assert outcome["agrees"].all()  # this one is its own oracle


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_substitute_is_trained_again(lab, damage, caplog):
    run, wanted = lab.run("mnist", "SM"), cell(6, method="SM")
    first = lab._substitute(wanted, run).state_dict()
    (path,) = lab.folder.rglob("substitute-*")
    content = path.read_bytes()
    path.write_bytes(content[:-9] if damage is None else damage)
    again = lab._substitute(wanted, run).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert path.read_bytes() == content
    assert "is trained again" in caplog.text


def test_a_substitute_learns_its_oracle():
    digits = data.load("digits")
    images, *_ = next(digits.train.batches(range(150), 150))

    class Oracle(torch.nn.Module):
        """Classes of the image's brighter half."""

        def forward(self, x):
            halves = x.mean(1).unflatten(2, (2, 14)).mean((1, 3))
            return halves

    model = substitute.train(Oracle(), images, 2, rounds=3, epochs=10)
    test, *_ = next(digits.test.batches(range(450), 450))
    agrees = (model(test).argmax(1) == Oracle()(test).argmax(1)).float().mean()
    assert agrees > 0.8


def test_singular_values_are_torch_s():
    matrix = torch.randn(80, 60)
    torch.testing.assert_close(features.singular_values(matrix), torch.linalg.svdvals(matrix.double())[:50])


def test_activations_are_taken_after_the_relu(lab):
    images = torch.rand(3, 1, 28, 28)
    for method in ("SM", "CCN"):
        found = features.activations(lab.run("mnist", method).model, images, ("conv1", "fc1", "fc2"))
        assert [tuple(value.shape) for value in found.values()] == [(3, 16 * 26 * 26), (3, 100), (3, 100)]
        assert all((value >= 0).all() for value in found.values())


@pytest.mark.parametrize("number", features.FIGURES)
def test_figures_are_drawn(lab, number, tmp_path):
    assert features.run(number, lab, tmp_path / "out").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_figure_is_refused(lab, tmp_path):
    with pytest.raises(ValueError, match="figure must be one of"):
        features.run(3, lab, tmp_path)


def test_the_minimum_is_at_most_every_attack_s_on_the_images_that_both_saw(lab):
    minimum = lab.measure(cell(1, dataset="mnist", method="SM", attack="minimum", epsilon=0.1))
    assert minimum.images == 2
    for attack in ("fgsm", "pgd"):
        other = lab.measure(cell(1, dataset="mnist", method="SM", attack=attack, epsilon=0.1))
        assert len(other.held) == other.images
        assert other.value == pytest.approx(100 * sum(other.held.values()) / other.images)
        assert attack == "pgd" or all(other.held[index] for index, held in minimum.held.items() if held)
