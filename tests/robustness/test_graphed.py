"""Captured steps without a GPU: what a graph does with memory is acted out, so that training sees the same."""

import dataclasses
import gc
import weakref

import pytest
import torch
from test_training import killed_after, same
from torch import nn

from ccn_kernels.robustness import graphed, training
from ccn_kernels.robustness.config import TrainConfig
from ccn_kernels.robustness.data.splits import TensorSplit
from ccn_kernels.robustness.graphed import Graphed
from ccn_kernels.robustness.runs import Network
from ccn_kernels.robustness.training import train

CONFIG = TrainConfig(epochs=4, batch_size=16, learning_rate=0.02, warmup_steps=2, milestones=(0.5,))
CUDA = torch.device("cuda")


class Graphs:
    """A stand-in for ``_captured``: the capture changes nothing, and a replay writes where the capture has written."""

    def __init__(self):
        self.training, self.captures, self.replays = None, 0, 0

    def __call__(self, run, device):
        parameters, kept = list(self.training.model.parameters()), [self.training.sums, *self.training.model.buffers()]
        before = [tensor.clone() for tensor in kept]
        with torch.random.fork_rng(devices=[]):  # random numbers are drawn by replays alone
            run()
        for tensor, value in zip(kept, before, strict=True):
            tensor.copy_(value)
        memory = [parameter.grad for parameter in parameters]
        self.captures += 1

        def replay():
            run()
            for place, parameter in zip(memory, parameters, strict=True):
                place.copy_(parameter.grad)
                parameter.grad = None  # a replay runs no Python
            self.replays += 1

        return replay


@pytest.fixture
def graphs(monkeypatch):
    """Makes trainings on a CPU capture their steps."""
    stand_in, start = Graphs(), training._Training.__init__

    def remembered(self, *args):
        start(self, *args)
        stand_in.training = self

    monkeypatch.setattr(training._Training, "__init__", remembered)
    monkeypatch.setattr(graphed, "pays", lambda *args: True)
    monkeypatch.setattr(graphed, "_aside", lambda run, device: run())
    monkeypatch.setattr(graphed, "_captured", stand_in)
    return stand_in


@pytest.mark.parametrize(
    ("variant", "settings"),
    [("sm", {}), ("ccn+ls", {"channels_last": True}), ("bn", {"clip": 0.0}),
     ("sm", {"adversarial_epsilon": 0.1, "adversarial_warmup": 0.5}),
     ("sm", {"adversarial_epsilon": 0.1, "adversarial_warmup": 0.5, "adversarial_steps": 2})],
    ids=str,
)  # fmt: skip
def test_captured_steps_train_the_same_network(few_digits, tmp_path, request, variant, settings):
    """Five whole batches an epoch, captured from the fourth step on, and one that is smaller."""
    few = TensorSplit(few_digits.train.images[:88], few_digits.train.labels[:88], "cpu", augmented=True)
    network, config = Network("mnist_cnn", variant), dataclasses.replace(CONFIG, **settings)
    eager = train(network, few_digits._replace(train=few), config, tmp_path / "eager")
    graphs = request.getfixturevalue("graphs")
    captured = train(network, few_digits._replace(train=few), config, tmp_path / "captured")
    assert (graphs.captures, graphs.replays) == (1, 4 * 5 - graphed.EAGER_CALLS)
    assert same(eager.model, captured.model)
    assert eager.record["history"] == captured.record["history"]


@pytest.mark.parametrize("steps", [2, 9])  # before the capture, and after
def test_a_killed_run_goes_on_and_captures_anew(few_digits, tmp_path, monkeypatch, graphs, steps):
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    network = Network("mnist_cnn", "ccn")
    whole = train(network, few_digits, CONFIG, tmp_path / "whole")
    with monkeypatch.context() as context:
        killed_after(context, steps)
        with pytest.raises(KeyboardInterrupt):
            train(network, few_digits, CONFIG, tmp_path / "parts")
    resumed = train(network, few_digits, CONFIG, tmp_path / "parts")
    assert same(whole.model, resumed.model)
    assert whole.record["history"] == resumed.record["history"]


@pytest.mark.usefixtures("graphs")
def test_a_graph_goes_when_the_training_is_done(few_digits, tmp_path, monkeypatch):
    """Its memory is the GPU's, whose want no garbage collector hears of."""
    made, start = [], Graphed.__init__

    def remembered(self, *args):
        start(self, *args)
        made.append(weakref.ref(self))

    def captured(run, device):
        run()
        return lambda: None  # which holds nothing, as a graph's does not

    monkeypatch.setattr(Graphed, "__init__", remembered)
    monkeypatch.setattr(graphed, "_captured", captured)
    gc.disable()
    try:
        train(Network("mnist_cnn", "sm"), few_digits, dataclasses.replace(CONFIG, epochs=1), tmp_path)
        assert [each() for each in made] == [None]
    finally:
        gc.enable()


def test_steps_are_captured_where_it_pays():
    assert graphed.pays(TrainConfig(), CUDA, 1)
    assert not graphed.pays(TrainConfig(), torch.device("cpu"), 1)
    assert not graphed.pays(TrainConfig(), CUDA, 2)
    assert not graphed.pays(TrainConfig(compile="default"), CUDA, 1)


def test_the_caller_s_batch_is_copied(monkeypatch):
    """A replay reads memory of its own: batches may lie anywhere."""
    layer, seen = nn.Linear(2, 1), []
    monkeypatch.setattr(graphed, "_aside", lambda run, device: run())
    monkeypatch.setattr(graphed, "_captured", lambda run, device: run)
    step = Graphed(lambda images, labels: seen.append((images.data_ptr(), images.sum().item())), layer.parameters())
    batches = [torch.full((3, 2), float(number)) for number in range(6)]
    for images in batches:
        step(images, torch.zeros(3))
    assert [total for _, total in seen] == [0, 6, 12, 18, 24, 30]
    assert [place for place, _ in seen[:3]] == [images.data_ptr() for images in batches[:3]]
    assert len({place for place, _ in seen[3:]}) == 1
    assert seen[3][0] not in {images.data_ptr() for images in batches}
