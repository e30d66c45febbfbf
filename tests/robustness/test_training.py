import dataclasses
import json
import os
import resource
import subprocess
import sys

import pytest
import torch
from small import part

from ccn_kernels import models
from ccn_kernels.robustness import data, runs, training
from ccn_kernels.robustness.config import SCHEDULES, TrainConfig
from ccn_kernels.robustness.data.splits import TensorSplit
from ccn_kernels.robustness.runs import Network
from ccn_kernels.robustness.training import accuracy, train

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


def interrupted(few_digits, folder, monkeypatch):
    """A run's progress, killed in its second epoch."""
    with monkeypatch.context() as context:
        killed_after(context, 4)
        with pytest.raises(KeyboardInterrupt):
            train(SM, few_digits, CONFIG, folder)
    return folder / training.PROGRESS


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


@pytest.mark.parametrize("settings", [{}, {"adversarial_steps": 2, "adversarial_warmup": 0.5}], ids=["fgsm", "pgd"])
def test_adversarial_training_resumes_too(few_digits, tmp_path, monkeypatch, settings):
    config = dataclasses.replace(CONFIG, adversarial_epsilon=0.3, **settings)
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    whole = train(SM, few_digits, config, tmp_path / "whole")
    with monkeypatch.context() as context:
        killed_after(context, 4)
        with pytest.raises(KeyboardInterrupt):
            train(SM, few_digits, config, tmp_path / "parts")
    assert same(whole.model, train(SM, few_digits, config, tmp_path / "parts").model)
    assert not same(whole.model, train(SM, few_digits, CONFIG, tmp_path / "plain").model)


def test_the_radius_of_a_step_reaches_its_images(few_digits, tmp_path, monkeypatch):
    seen = []

    def remembered(model, images, labels, config, epsilon):
        seen.append(epsilon.item())
        return images, labels

    monkeypatch.setattr(training.adversarial, "batch", remembered)
    config = dataclasses.replace(CONFIG, adversarial_epsilon=0.2, adversarial_warmup=4 / 9)
    train(SM, few_digits, config, tmp_path)
    assert seen == pytest.approx([0.05, 0.1, 0.15, *[0.2] * 6])


def test_random_starts_do_not_hang_on_who_else_draws(few_digits, tmp_path, monkeypatch):
    """A loader of files draws a number each time that it starts, a resumed one once more."""
    config = dataclasses.replace(CONFIG, adversarial_epsilon=0.2, adversarial_steps=1)
    alone = train(SM, few_digits, config, tmp_path / "alone")
    batches = training._Training._batches

    def drawing(self):
        torch.rand(1)
        return batches(self)

    monkeypatch.setattr(training._Training, "_batches", drawing)
    assert same(alone.model, train(SM, few_digits, config, tmp_path / "beside").model)


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
    progress = interrupted(few_digits, tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="other settings"):
        train(SM, few_digits, dataclasses.replace(CONFIG, seed=1), tmp_path)
    content = progress.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"nonsense"):
        progress.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{training.PROGRESS} is damaged"):
            train(SM, few_digits, CONFIG, tmp_path)


def test_a_full_disk_leaves_what_was_there(few_digits, tmp_path, monkeypatch):
    progress = interrupted(few_digits, tmp_path / "parts", monkeypatch)
    kept, limits = progress.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"cannot write .*{training.PROGRESS}"):
            train(SM, few_digits, CONFIG, tmp_path / "parts")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert progress.read_bytes() == kept
    assert list((tmp_path / "parts").iterdir()) == [progress]
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
    assert all(weight.is_contiguous() for weight in other.model.parameters())  # attacked now as when it is read again


def test_label_smoothing_is_the_variant_s_unless_said(few_digits, tmp_path):
    given = train(SM, few_digits, dataclasses.replace(CONFIG, label_smoothing=0.1), tmp_path / "given")
    assert same(given.model, train(Network("mnist_cnn", "ls"), few_digits, CONFIG, tmp_path / "ls").model)
    assert not same(given.model, train(SM, few_digits, CONFIG, tmp_path / "none").model)


def test_a_record_of_before_a_setting_stands_for_its_default(few_digits, tmp_path):
    run = train(SM, few_digits, CONFIG, tmp_path)
    record = json.loads((tmp_path / runs.RECORD).read_text())
    del record["config"]["adversarial_steps"], record["network"]["delta"]
    (tmp_path / runs.RECORD).write_text(json.dumps(record))
    assert same(run.model, train(SM, few_digits, CONFIG, tmp_path).model)
    with pytest.raises(ValueError, match="other settings"):
        train(SM, few_digits, dataclasses.replace(CONFIG, label_smoothing=0.1), tmp_path)


def test_progress_of_before_a_setting_is_gone_on_with(few_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    progress = interrupted(few_digits, tmp_path / "parts", monkeypatch)
    state = torch.load(progress, weights_only=True)
    del state["identity"]["config"]["adversarial_steps"], state["identity"]["network"]["delta"]
    torch.save(state, progress)
    whole = train(SM, few_digits, CONFIG, tmp_path / "whole")
    assert same(whole.model, train(SM, few_digits, CONFIG, tmp_path / "parts").model)


@pytest.mark.parametrize("architecture", ["mnist_cnn", "vgg11"])
@pytest.mark.parametrize("variant", models.VARIANTS)
def test_every_variant_trains_and_comes_back(architecture, variant, tmp_path):
    whole = data.load("digits" if architecture == "mnist_cnn" else "digits32")
    few = whole._replace(train=part(whole.train, 16), test=part(whole.test, 8))
    network = Network(architecture, variant, width=1.0 if architecture == "mnist_cnn" else 0.125)
    config = TrainConfig(epochs=2, batch_size=8, learning_rate=0.01, warmup_steps=0)
    torch.manual_seed(config.seed)
    untrained = network.build(few.shape, few.classes).state_dict()
    run = train(network, few, config, tmp_path)
    moved = [name for name, weight in run.model.named_parameters() if not torch.equal(weight, untrained[name])]
    assert moved == [name for name, _ in run.model.named_parameters()]
    assert [name for name in run.record["alpha"]] == [name.removesuffix(".alpha") for name in moved if "alpha" in name]
    assert same(runs.load(tmp_path).model, run.model)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("epochs", 0), ("batch_size", 0), ("learning_rate", -1), ("learning_rate", float("nan")), ("milestones", (0.5, 1)),
     ("decay", 0), ("warmup_steps", -1), ("clip", -1), ("momentum", 1), ("weight_decay", float("inf")),
     ("adversarial_epsilon", 1.5), ("adversarial_steps", -1), ("adversarial_warmup", 1.1), ("label_smoothing", 0.6),
     ("validation", -1), ("seed", -1), ("seed", 2**63)],
)  # fmt: skip
def test_settings_out_of_range_are_named(setting, value):
    with pytest.raises(ValueError, match=f"{setting} must be"):
        TrainConfig(**{setting: value})


@pytest.mark.parametrize("setting", ["adversarial_steps", "adversarial_warmup"])
def test_settings_of_adversarial_training_need_a_radius(setting):
    with pytest.raises(ValueError, match=f"{setting} is of adversarial training"):
        TrainConfig(**{setting: 1})


def test_no_clipping_is_clipping_at_infinity_s_length(few_digits, tmp_path):
    clips = (0.0, 1e30, 1e-3)
    found = [train(SM, few_digits, dataclasses.replace(CONFIG, clip=clip), tmp_path / str(clip)) for clip in clips]
    assert same(found[0].model, found[1].model)
    assert not same(found[0].model, found[2].model)


def test_other_data_of_the_same_name_is_another_run(few_digits, tmp_path):
    train(SM, few_digits, CONFIG, tmp_path)
    for split in ("train", "test"):
        other = few_digits._replace(**{split: part(getattr(few_digits, split), 30)})
        with pytest.raises(ValueError, match="other data"):
            train(SM, other, CONFIG, tmp_path)


def test_a_batch_of_corrupt_images_is_passed_over(few_digits, tmp_path):
    class Holed(TensorSplit):
        def batches(self, *args, **options):
            for number, (images, labels, index) in enumerate(super().batches(*args, **options)):
                kept = slice(0, 0 if number in self.holes else None)
                yield images[kept], labels[kept], index[kept]

    split = Holed(few_digits.train.images, few_digits.train.labels, "cpu")
    split.holes = (1,)
    run = train(SM, few_digits._replace(train=split), CONFIG, tmp_path / "some")
    assert len(run.record["history"]) == 3
    assert run.record["history"][-1]["loss"] > 0
    split.holes = range(9)
    with pytest.raises(ValueError, match="no training image can be decoded"):
        train(SM, few_digits._replace(train=split), CONFIG, tmp_path / "none")
    with pytest.raises(ValueError, match="none of the images that are to be judged"):
        accuracy(run.model, split)


def test_the_seconds_are_those_of_reading_images_too(few_digits, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(training.time, "perf_counter", lambda: now[0])

    class Slow(TensorSplit):
        def batches(self, *args, **options):
            for batch in super().batches(*args, **options):
                now[0] += 10
                yield batch

    split = Slow(few_digits.train.images, few_digits.train.labels, "cpu")
    run = train(SM, few_digits._replace(train=split), CONFIG, tmp_path)
    assert run.record["seconds"] == 90  # three epochs of three steps


def test_saving_takes_a_small_share_of_the_time(monkeypatch):
    now, saved = [0.0], []
    monkeypatch.setattr(training.time, "perf_counter", lambda: now[0])

    def save():
        saved.append(now[0])
        now[0] += 2  # what it takes

    saves = training._Saves(save)
    for _ in range(100):
        now[0] += 1
        saves.after_epoch()
    assert saved[:3] == [1, 23, 45]
    now[0] += training.SAVE_SECONDS - 1
    saves.in_epoch()
    assert len(saved) == 5 + 1


def test_the_largest_seed_trains_augmented_images(few_digits, tmp_path):
    few_digits.train.augmented = True
    run = train(SM, few_digits, dataclasses.replace(CONFIG, seed=2**63 - 1), tmp_path)
    assert len(run.record["history"]) == 3


def test_the_schedules_are_the_paper_s():
    mnist, cifar10 = SCHEDULES["mnist"], SCHEDULES["cifar10"]
    rates = [training.rate(mnist, step, 50_000) for step in (0, 49, 100, 29_999, 30_000, 40_000)]
    assert rates == pytest.approx([0.01, 0.5, 1, 1, 0.1, 0.01])
    assert [round(share * cifar10.epochs) for share in cifar10.milestones] == [60, 120, 160]
    assert training.rate(cifar10, 130, 200) == pytest.approx(0.04)


WORKER = """
import sys
from pathlib import Path
from ccn_kernels.robustness import data
from ccn_kernels.robustness.config import TrainConfig
from ccn_kernels.robustness.data.splits import TensorSplit
from ccn_kernels.robustness.runs import Network
from ccn_kernels.robustness.training import train
digits = data.load("digits")
few = TensorSplit(digits.train.images[:320], digits.train.labels[:320], "cpu")
config = TrainConfig(epochs=2, batch_size=64, learning_rate=0.02, warmup_steps=2)
run = train(Network("mnist_cnn", "ccn"), digits._replace(train=few), config, Path(sys.argv[1]))
assert len(run.record["history"]) == 2 and run.digest and not run.model.training
"""


def test_torchrun_s_processes_train_one_network(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for name, launcher in (("two", two), ("one", [])):
        command = [sys.executable, *launcher, str(script), str(tmp_path / name)]
        subprocess.run(command, check=True, env=environment, capture_output=True)
    one, both = (runs.load(tmp_path / name) for name in ("one", "two"))
    for alone, together in zip(one.record["history"], both.record["history"], strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        assert together["accuracy"] == pytest.approx(alone["accuracy"], abs=1)  # 0.3 an image
    torch.manual_seed(0)
    start = Network("mnist_cnn", "ccn").build((1, 28, 28), 10).state_dict()
    for name, weight in one.model.state_dict().items():
        assert (both.model.state_dict()[name] - weight).norm() < 0.02 * (weight - start[name]).norm()


def test_a_batch_is_of_equal_shares(few_digits):
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 3 processes, got 32"):
        training._Training(SM, few_digits, CONFIG, "cpu", 0, 3)


def test_progress_of_another_number_of_processes_is_refused(few_digits, tmp_path, monkeypatch):
    progress = interrupted(few_digits, tmp_path, monkeypatch)
    torch.save({**torch.load(progress), "processes": 2}, progress)
    with pytest.raises(ValueError, match="in 2 processes, not 1"):
        train(SM, few_digits, CONFIG, tmp_path)


def test_progress_that_is_not_whole_is_refused(few_digits, tmp_path, monkeypatch):
    progress = interrupted(few_digits, tmp_path, monkeypatch)
    state = torch.load(progress)
    lacking = [{key: value for key, value in state.items() if key != missing} for missing in state]
    for foreign in (*lacking, [1, 2], torch.ones(3), "text", {**state, "model": {}}, {**state, "optimizer": 3}):
        torch.save(foreign, progress)
        with pytest.raises(ValueError, match=f"{training.PROGRESS} is damaged"):
            train(SM, few_digits, CONFIG, tmp_path)
