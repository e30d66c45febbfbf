import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch

from ccn_kernels import models
from ccn_kernels.robustness import runs, training
from ccn_kernels.robustness.config import SCHEDULES, TrainConfig
from ccn_kernels.robustness.runs import Network
from ccn_kernels.robustness.training import accuracy, fgsm_images, train

CONFIG = TrainConfig(epochs=3, batch_size=32, learning_rate=0.02, warmup_steps=2)
SM = Network("mnist_cnn", "sm")


def same(a, b):
    states = a.state_dict(), b.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )


def killed_after(context, steps):
    """Ctrl-C in the step that follows."""
    update, done = training._Training._update, []

    def interrupted(self, *args):
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(None)
        update(self, *args)

    context.setattr(training._Training, "_update", interrupted)


@pytest.mark.parametrize("steps", [2, 3, 7])  # in an epoch, at its end, in the last; three steps an epoch
@pytest.mark.parametrize("variant", ["sm", "ccn+ls", "bn"])
def test_a_killed_run_resumed_is_bit_identical(few_digits, tmp_path, monkeypatch, variant, steps):
    network = Network("mnist_cnn", variant)
    few_digits.train.augmented = True
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    whole = train(network, few_digits, CONFIG, tmp_path / "whole")
    with monkeypatch.context() as context:
        killed_after(context, steps)
        with pytest.raises(KeyboardInterrupt):
            train(network, few_digits, CONFIG, tmp_path / "parts")
    assert not (tmp_path / "parts" / runs.RECORD).exists()
    resumed = train(network, few_digits, CONFIG, tmp_path / "parts")
    assert same(whole.model, resumed.model)
    assert whole.record["history"] == resumed.record["history"]
    assert whole.digest == resumed.digest
    assert not (tmp_path / "parts" / training.PROGRESS).exists()


def test_adversarial_training_resumes_too(few_digits, tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, adversarial_epsilon=0.3)
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    whole = train(SM, few_digits, config, tmp_path / "whole")
    with monkeypatch.context() as context:
        killed_after(context, 4)
        with pytest.raises(KeyboardInterrupt):
            train(SM, few_digits, config, tmp_path / "parts")
    assert same(whole.model, train(SM, few_digits, config, tmp_path / "parts").model)
    assert not same(whole.model, train(SM, few_digits, CONFIG, tmp_path / "plain").model)


def test_a_finished_run_is_read_and_not_trained_again(few_digits, tmp_path, monkeypatch):
    first = train(SM, few_digits, CONFIG, tmp_path)
    killed_after(monkeypatch, 0)
    again = train(SM, few_digits, CONFIG, tmp_path)
    assert same(first.model, again.model)
    assert first.record == again.record
    assert not again.model.training


def test_a_folder_of_another_run_is_refused(few_digits, tmp_path, monkeypatch):
    train(SM, few_digits, CONFIG, tmp_path)
    with pytest.raises(ValueError, match="other settings"):
        train(SM, few_digits, dataclasses.replace(CONFIG, seed=1), tmp_path)
    with pytest.raises(ValueError, match="expected a Network"):
        train(Network("mnist_cnn", "ccn"), few_digits, CONFIG, tmp_path)


def test_progress_of_another_run_and_damaged_progress_are_refused(few_digits, tmp_path, monkeypatch):
    with monkeypatch.context() as context:
        killed_after(context, 4)
        with pytest.raises(KeyboardInterrupt):
            train(SM, few_digits, CONFIG, tmp_path)
    progress = tmp_path / training.PROGRESS
    with pytest.raises(ValueError, match="other settings"):
        train(SM, few_digits, dataclasses.replace(CONFIG, seed=1), tmp_path)
    content = progress.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"nonsense"):
        progress.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{training.PROGRESS} is damaged"):
            train(SM, few_digits, CONFIG, tmp_path)


def test_a_full_disk_leaves_what_was_there(few_digits, tmp_path, monkeypatch):
    def full(self, path, identity):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as context:
        killed_after(context, 4)
        with pytest.raises(KeyboardInterrupt):
            train(SM, few_digits, CONFIG, tmp_path / "parts")
    kept = (tmp_path / "parts" / training.PROGRESS).read_bytes()

    def half(state, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as context:
        context.setattr(torch, "save", half)
        with pytest.raises(OSError, match="No space"):
            train(SM, few_digits, CONFIG, tmp_path / "parts")
    assert (tmp_path / "parts" / training.PROGRESS).read_bytes() == kept
    assert [path.name for path in (tmp_path / "parts").iterdir()] == [training.PROGRESS]
    whole = train(SM, few_digits, CONFIG, tmp_path / "whole")
    assert same(whole.model, train(SM, few_digits, CONFIG, tmp_path / "parts").model)


def test_training_lowers_the_loss_and_the_record_says_how(few_digits, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=10, learning_rate=0.1, validation=16)
    run = train(Network("mnist_cnn", "ccn"), few_digits, config, tmp_path)
    assert accuracy(run.model, few_digits.train) > 50
    record = json.loads((tmp_path / runs.RECORD).read_text())
    assert len(record["history"]) == 10
    assert record["history"][-1]["loss"] < record["history"][0]["loss"]
    assert 0 <= record["history"][-1]["validation_accuracy"] <= 100
    assert record["test_accuracy"] == accuracy(run.model, few_digits.test)
    assert set(record["alpha"]) == {"conv1", "conv2", "conv3", "conv4", "fc1", "fc2", "fc3"}
    assert record["config"]["validation"] == 16
    assert record["environment"]["packages"]["torch"]


def test_held_out_images_are_not_trained_on(few_digits, tmp_path):
    config = dataclasses.replace(CONFIG, validation=16)
    trained = training._Training(SM, few_digits, config, "cpu", 0, 1)
    assert set(trained.held.tolist()).isdisjoint(trained.kept.tolist())
    assert len(trained.held) + len(trained.kept) == 96
    with pytest.raises(ValueError, match="validation must leave images"):
        train(SM, few_digits, dataclasses.replace(CONFIG, validation=96), tmp_path)


def test_a_diverged_run_stops_and_says_so(few_digits, tmp_path):
    config = dataclasses.replace(CONFIG, learning_rate=1e30, clip=1e30, warmup_steps=0)
    with pytest.raises(training.DivergedError, match="SM diverged"):
        train(SM, few_digits, config, tmp_path)


@pytest.mark.parametrize("settings", [{"bf16": True}, {"channels_last": True}, {"compile": "default"}])
def test_faster_ways_train_as_well(few_digits, tmp_path, settings):
    config = dataclasses.replace(CONFIG, epochs=2)
    plain = train(SM, few_digits, config, tmp_path / "plain")
    other = train(SM, few_digits, dataclasses.replace(config, **settings), tmp_path / "other")
    losses = [run.record["history"][-1]["loss"] for run in (plain, other)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_the_images_of_adversarial_training_are_fgsm_s():
    model = models.paper_mnist_cnn("sm").eval()
    from ccn_kernels.robustness.attacks import adversarial_images

    images, labels = torch.rand(4, 1, 28, 28), torch.arange(4)
    torch.testing.assert_close(fgsm_images(model, images, labels, 0.2), adversarial_images(model, images, labels, 0.2))


def test_the_schedules_are_the_paper_s():
    mnist, cifar10 = SCHEDULES["mnist"], SCHEDULES["cifar10"]
    rates = [training.rate(mnist, step, 50_000) for step in (0, 49, 100, 29_999, 30_000, 40_000)]
    assert rates == pytest.approx([0.01, 0.5, 1, 1, 0.1, 0.01])
    assert [round(share * cifar10.epochs) for share in cifar10.milestones] == [60, 120, 160]
    assert training.rate(cifar10, 130, 200) == pytest.approx(0.04)


WORKER = """
import dataclasses, sys
from pathlib import Path
from ccn_kernels.robustness import data
from ccn_kernels.robustness.config import TrainConfig
from ccn_kernels.robustness.runs import Network
from ccn_kernels.robustness.training import train
config = TrainConfig(epochs=2, batch_size=64, learning_rate=0.05, warmup_steps=2)
train(Network("mnist_cnn", "ccn"), data.load("digits"), config, Path(sys.argv[1]))
"""


def test_torchrun_s_processes_train_one_network(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    subprocess.run([*two, str(tmp_path / "two")], check=True, env=environment, capture_output=True)
    subprocess.run(
        [sys.executable, str(script), str(tmp_path / "one")], check=True, env=environment, capture_output=True
    )
    one, both = (json.loads((tmp_path / name / runs.RECORD).read_text()) for name in ("one", "two"))
    assert both["history"][0]["loss"] == pytest.approx(one["history"][0]["loss"], rel=0.3)
    assert both["test_accuracy"] > 50
