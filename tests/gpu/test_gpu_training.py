"""What only a GPU can show of the paper's experiments: captured steps, and that no step waits."""

import dataclasses

import pytest
import torch

pytest.importorskip("foolbox", reason="it needs the extra `robustness`")
if not torch.cuda.is_available():
    pytest.skip("it needs a CUDA GPU", allow_module_level=True)

from ccn_kernels.robustness import attacks, data, evaluation, graphed, training
from ccn_kernels.robustness.config import TrainConfig
from ccn_kernels.robustness.data.splits import TensorSplit
from ccn_kernels.robustness.runs import Network
from ccn_kernels.robustness.training import train

CONFIG = TrainConfig(epochs=4, batch_size=32, learning_rate=0.02, warmup_steps=4)
NETWORKS = [Network("mnist_cnn", "sm"), Network("mnist_cnn", "ccn+ls"), Network("vgg11", "ccn", width=0.25)]


@pytest.fixture(autouse=True)
def isolated():
    """Replaces the fixture that poisons memory: cuDNN has no deterministic form of some gradients."""
    torch.manual_seed(0)


def few_digits(network, device="cuda"):
    """Twelve whole batches an epoch and a smaller one, augmented."""
    whole = data.load("digits" if network.architecture == "mnist_cnn" else "digits32", device=device)
    train = TensorSplit(whole.train.images[:400], whole.train.labels[:400], device, augmented=True)
    return whole._replace(train=train)


def assert_alike(one, two, start):
    """Both went the same way from the start; sums on a GPU may round differently each time."""
    for name, weight in one.model.state_dict().items():
        moved = (weight - start[name]).norm()
        assert (two.model.state_dict()[name] - weight).norm() < 0.1 * moved + 1e-3, name
    for alone, other in zip(one.record["history"], two.record["history"], strict=True):
        assert other["loss"] == pytest.approx(alone["loss"], rel=0.05)


def untrained(network, dataset):
    torch.manual_seed(CONFIG.seed)
    return network.build(dataset.shape, dataset.classes).cuda().state_dict()


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: f"{network.architecture}-{network.variant}")
def test_captured_steps_train_as_eager_ones_do(network, bf16, tmp_path, monkeypatch):
    dataset, config = few_digits(network), dataclasses.replace(CONFIG, bf16=bf16, channels_last=bf16)
    captured = train(network, dataset, config, tmp_path / "captured", "cuda")
    monkeypatch.setattr(graphed, "pays", lambda *args: False)
    eager = train(network, dataset, config, tmp_path / "eager", "cuda")
    assert_alike(eager, captured, untrained(network, dataset))


@pytest.mark.parametrize("steps", [2, 20])  # before the capture, and after
def test_a_killed_run_goes_on(steps, tmp_path, monkeypatch):
    network, update, done = NETWORKS[1], training._Training._update, []
    dataset = few_digits(network)
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    whole = train(network, dataset, CONFIG, tmp_path / "whole", "cuda")

    def interrupted(self, *args):
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(None)
        update(self, *args)

    with monkeypatch.context() as context:
        context.setattr(training._Training, "_update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(network, dataset, CONFIG, tmp_path / "parts", "cuda")
    assert_alike(whole, train(network, dataset, CONFIG, tmp_path / "parts", "cuda"), untrained(network, dataset))


@pytest.mark.parametrize("steps", [0, 3], ids=["fgsm", "pgd"])
def test_adversarial_training_is_captured_too(steps, tmp_path, monkeypatch):
    settings = {"adversarial_epsilon": 0.1, "adversarial_warmup": 0.5, "adversarial_steps": steps}
    network, config = NETWORKS[0], dataclasses.replace(CONFIG, **settings)
    dataset = few_digits(network)
    captured = train(network, dataset, config, tmp_path / "captured", "cuda")
    monkeypatch.setattr(graphed, "pays", lambda *args: False)
    eager = train(network, dataset, config, tmp_path / "eager", "cuda")
    assert captured.record["history"][-1]["loss"] == pytest.approx(eager.record["history"][-1]["loss"], rel=0.1)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="it needs two GPUs")
def test_captured_on_a_device_that_is_not_the_current_one(tmp_path):
    dataset = few_digits(NETWORKS[1], "cuda:1")
    run = train(NETWORKS[1], dataset, dataclasses.replace(CONFIG, epochs=20, learning_rate=0.1), tmp_path, "cuda:1")
    assert run.record["history"][-1]["loss"] < 0.5 * run.record["history"][0]["loss"]


@pytest.mark.parametrize("captured", [True, False])
def test_a_step_never_waits_for_the_device(captured, monkeypatch):
    network = NETWORKS[1]
    monkeypatch.setattr(graphed, "pays", lambda *args: captured)
    run = training._Training(network, few_digits(network), CONFIG, "cuda", 0, 1)
    batches = run._batches()
    for _ in range(8):  # its kernels are compiled, and the step captured
        run._update(*next(batches)[:2])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for images, labels, _ in batches:
            run._update(images, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert run.sums.isfinite().all()


@pytest.mark.parametrize("network", NETWORKS[1:], ids=lambda network: network.architecture)
def test_attacks_are_those_of_a_cpu(network, tmp_path):
    """But for images that lie on a border within what float32 rounds."""
    dataset = few_digits(network)
    run = train(network, dataset, dataclasses.replace(CONFIG, epochs=10), tmp_path / "run", "cuda")
    on_cpu = training.runs.load(tmp_path / "run")
    images = dataset.test.images[:100].cpu()
    split = TensorSplit(images, dataset.test.labels[:100], "cpu")
    for attack in (attacks.FGSM((0.02, 0.1)), attacks.DeepFool(), attacks.DeepFool("2018")):
        here = evaluation.evaluate(run, attack, dataset.test, 100, tmp_path / "gpu")
        there = evaluation.evaluate(on_cpu, attack, split, 100, tmp_path / "cpu")
        for name in ("right", "fooled"):
            assert (here[name] != there[name]).float().mean() < 0.03, (attack.name, name)
        if "ratio" in here:
            torch.testing.assert_close(here["ratio"].median(), there["ratio"].median(), rtol=0.05, atol=0.005)
