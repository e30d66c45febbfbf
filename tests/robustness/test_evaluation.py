import dataclasses

import pytest
import torch

from ccn_kernels.robustness import evaluation, training
from ccn_kernels.robustness.attacks import FGSM, PGD
from ccn_kernels.robustness.data.splits import TensorSplit


@dataclasses.dataclass(frozen=True)
class Killed(PGD):
    """PGD, which dies in its third batch."""

    calls = 0

    def __call__(self, *args):
        type(self).calls += 1
        if type(self).calls == 3:
            raise KeyboardInterrupt
        return super().__call__(*args)


@pytest.fixture
def killed(monkeypatch):
    monkeypatch.setattr(Killed, "calls", 0)
    return Killed((0.05, 0.1), steps=3, batch_size=1)


def test_a_killed_evaluation_goes_on_and_ends_the_same(bright_or_dark, tmp_path, killed):
    run, split = bright_or_dark
    whole = evaluation.evaluate(run, PGD((0.05, 0.1), steps=3, batch_size=1), split, None, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate(run, killed, split, None, tmp_path / "parts")
    resumed = evaluation.evaluate(run, killed, split, None, tmp_path / "parts")
    assert Killed.calls == 3 + 4  # of six
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole if key != "seconds")


def test_what_is_done_is_not_done_again_and_more_images_are_added(bright_or_dark, tmp_path):
    run, split = bright_or_dark
    attack = FGSM((0.1,), batch_size=2)
    few = evaluation.evaluate(run, attack, split, 2, tmp_path)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    assert torch.equal(evaluation.evaluate(run, attack, split, 2, tmp_path)["fooled"], few["fooled"])
    assert path.stat().st_mtime_ns == written
    many = evaluation.evaluate(run, attack, split, None, tmp_path)
    assert len(many["fooled"]) == 6
    assert torch.equal(many["fooled"][:2], few["fooled"])
    assert len(evaluation.evaluate(run, attack, split, 2, tmp_path)["fooled"]) == 2


def test_other_weights_and_other_settings_have_outcomes_of_their_own(bright_or_dark, tmp_path):
    run, split = bright_or_dark
    evaluation.evaluate(run, FGSM((0.1,)), split, None, tmp_path)
    evaluation.evaluate(run, FGSM((0.2,)), split, None, tmp_path)
    other = dataclasses.replace(run, record={"weights_sha256": "1"})
    evaluation.evaluate(other, FGSM((0.1,)), split, None, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_outcome_is_done_again(bright_or_dark, tmp_path, damage, caplog):
    run, split = bright_or_dark
    first = evaluation.evaluate(run, FGSM((0.1,)), split, None, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3] if damage is None else damage)
    again = evaluation.evaluate(run, FGSM((0.1,)), split, None, tmp_path)
    assert torch.equal(first["fooled"], again["fooled"])
    assert "done again" in caplog.text


def test_other_images_have_an_outcome_of_their_own(bright_or_dark, tmp_path):
    run, split = bright_or_dark
    found = []
    for images in (split.images, 1 - split.images):
        attack = FGSM((0.1,))
        found.append(evaluation.evaluate(run, attack, TensorSplit(images, split.labels, "cpu"), None, tmp_path))
    assert found[0]["right"].all()
    assert not found[1]["right"].any()


class Holed:
    """A split, some of whose images cannot be decoded."""

    def __init__(self, split, missing):
        self.split, self.missing, self.shape, self.fingerprint = split, torch.tensor(missing), split.shape, "holed"

    def __len__(self):
        return len(self.split)

    def batches(self, order, batch_size):
        for images, labels, index in self.split.batches(order, batch_size):
            kept = ~torch.isin(index, self.missing)
            yield images[kept], labels[kept], index[kept]


@pytest.mark.parametrize("missing", [[0, 1, 4], [2, 3, 5]])  # a whole batch each
def test_images_that_cannot_be_decoded_are_missing_from_the_outcome(bright_or_dark, tmp_path, missing):
    run, split = bright_or_dark
    attack = FGSM((0.1,), batch_size=2)
    whole = evaluation.evaluate(run, attack, split, None, tmp_path)
    found = [evaluation.evaluate(run, attack, Holed(split, missing), count, tmp_path) for count in (4, None)]
    kept = [index for index in range(6) if index not in missing]
    assert found[1]["index"].tolist() == kept
    assert torch.equal(found[1]["fooled"], whole["fooled"][kept])
    assert found[0]["index"].tolist() == [index for index in kept if index < 4]
    again = evaluation.evaluate(run, attack, Holed(split, missing), 4, tmp_path)
    assert again["index"].tolist() == found[0]["index"].tolist()


@pytest.mark.parametrize("side", [32, 64, 256])
def test_batches_are_smaller_where_images_are_larger(bright_or_dark, tmp_path, side):
    run, _ = bright_or_dark
    split = TensorSplit(torch.rand(9, 1, side, side), torch.arange(9) % 2, "cpu")
    sizes = []
    run.model.register_forward_pre_hook(lambda model, args: sizes.append(len(args[0])))
    evaluation.evaluate(run, FGSM((0.1,), batch_size=8), split, None, tmp_path)
    assert max(sizes) == {32: 8, 64: 2, 256: 1}[side]
    sizes.clear()
    training.accuracy(run.model, split, 8)
    assert max(sizes) == {32: 8, 64: 2, 256: 1}[side]


def test_nothing_to_attack_is_said(bright_or_dark, tmp_path):
    run, split = bright_or_dark
    for nothing, skip in ((Holed(split, range(6)), 0), (split, 6)):
        with pytest.raises(ValueError, match="no image to attack"):
            evaluation.evaluate(run, FGSM((0.1,)), nothing, None, tmp_path, skip=skip)


def test_images_can_be_left_out_at_the_front(bright_or_dark, tmp_path):
    run, split = bright_or_dark
    found = evaluation.evaluate(run, FGSM((0.1,)), split, None, tmp_path, skip=4)
    whole = evaluation.evaluate(run, FGSM((0.1,)), split, None, tmp_path)
    assert torch.equal(found["fooled"], whole["fooled"][4:])
