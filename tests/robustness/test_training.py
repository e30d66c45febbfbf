import dataclasses

import pytest
import torch

from ccn_kernels.robustness import training
from ccn_kernels.robustness.training import TrainConfig, train

CONFIG = TrainConfig(epochs=3, batch_size=32, learning_rate=0.02, warmup_steps=2)


def same(a, b):
    states = a.state_dict(), b.state_dict()
    return all(torch.equal(x, y) for x, y in zip(*(s.values() for s in states), strict=True))


def interrupt_after(monkeypatch, epochs):
    """Ctrl-C in the middle of the epoch that follows."""
    run_epoch, done = training._run_epoch, []

    def interrupted(*args):
        if len(done) == epochs:
            raise KeyboardInterrupt
        done.append(None)
        run_epoch(*args)

    monkeypatch.setattr(training, "_run_epoch", interrupted)


@pytest.mark.parametrize("variant", ["sm", "ccn+ls"])
def test_an_interrupted_run_resumed_is_bit_identical(few_digits, tmp_path, monkeypatch, variant):
    whole, _ = train(variant, few_digits, CONFIG, tmp_path / "whole.pt")
    with monkeypatch.context() as context:
        interrupt_after(context, 2)
        with pytest.raises(KeyboardInterrupt):
            train(variant, few_digits, CONFIG, tmp_path / "parts.pt")
    resumed, seconds = train(variant, few_digits, CONFIG, tmp_path / "parts.pt")
    assert same(whole, resumed)
    assert seconds > 0


def test_a_finished_run_is_not_trained_again(few_digits, tmp_path, monkeypatch):
    first, seconds = train("ccn", few_digits, CONFIG, tmp_path / "run.pt")
    interrupt_after(monkeypatch, 0)
    again, seconds_again = train("ccn", few_digits, CONFIG, tmp_path / "run.pt")
    assert same(first, again)
    assert seconds == seconds_again


def test_other_settings_start_again(few_digits, tmp_path):
    train("sm", few_digits, CONFIG, tmp_path / "run.pt")
    other = dataclasses.replace(CONFIG, seed=1)
    assert same(
        train("sm", few_digits, other, tmp_path / "run.pt")[0], train("sm", few_digits, other, tmp_path / "new.pt")[0]
    )


def test_training_lowers_the_loss(few_digits, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=10, learning_rate=0.1)
    model, _ = train("ccn", few_digits, config, tmp_path / "run.pt")
    predicted = model(few_digits.train_images).argmax(1)
    assert (predicted == few_digits.train_labels).float().mean() > 0.5


def test_a_diverged_run_stops_and_says_so(few_digits, tmp_path):
    config = dataclasses.replace(CONFIG, learning_rate=1e30, clip=1e30, warmup_steps=0)
    with pytest.raises(training.DivergedError, match="sm diverged"):
        train("sm", few_digits, config, tmp_path / "run.pt")


def test_the_schedule_warms_up_and_decays_as_in_the_paper():
    config = TrainConfig(epochs=50, warmup_steps=100)
    rates = [training._rate(config, step, 50_000) for step in (0, 49, 100, 29_999, 30_000, 40_000)]
    assert rates == pytest.approx([0.01, 0.5, 1, 1, 0.1, 0.01])
