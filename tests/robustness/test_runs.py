"""Trained networks as files: what is not one is refused, and nothing in a file is executed."""

import dataclasses
import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from ccn_kernels.robustness import runs
from ccn_kernels.robustness.config import TrainConfig
from ccn_kernels.robustness.runs import Network
from ccn_kernels.scales import compact_layers


@pytest.fixture
def saved(few_digits, tmp_path):
    network = Network("mnist_cnn", "ccn")
    return runs.save(tmp_path, network, network.build(few_digits.shape, 10), few_digits, {"data": "few"}), tmp_path


def test_a_run_comes_back_as_it_was(saved):
    run, folder = saved
    for path in (folder, folder / runs.WEIGHTS):
        again = runs.load(path)
        assert again.network == run.network
        assert again.record == run.record
        x = torch.rand(2, 1, 28, 28)
        assert torch.equal(again.model(x), run.model(x))


def test_alpha_and_delta_of_choice_come_back(few_digits, tmp_path):
    network = Network("mnist_cnn", "ccn", alpha=2.0, delta=0.5)
    assert network.title == "CCN, alpha 2, delta 0.5"
    run = runs.save(tmp_path, network, network.build(few_digits.shape, 10), few_digits, {})
    for model in (run.model, runs.load(tmp_path, network=network).model):
        assert [layer.delta for layer in compact_layers(model)] == [0.5] * 7
        assert [layer.alpha.item() for layer in compact_layers(model)] == [2.0] * 7
        assert not any(layer.alpha.requires_grad for layer in compact_layers(model))
    with pytest.raises(ValueError, match="sm has none"):
        Network("mnist_cnn", "sm", delta=0.5).build(few_digits.shape, 10)
    with pytest.raises(ValueError, match="delta must be"):
        Network("mnist_cnn", "ccn", delta=-1.0).build(few_digits.shape, 10)


@pytest.mark.parametrize(
    ("network", "settings", "name"),
    [(Network("mnist_cnn", "sm"), {}, "sm-seed0"),
     (Network("mnist_cnn", "sm", "fc1"), {"seed": 2}, "sm-fc1-seed2"),
     (Network("mnist_cnn", "ccn", alpha=2.0, delta=0.5), {}, "ccn-alpha2-delta0.5-seed0"),
     (Network("mnist_cnn", "ccn+ls"), {"label_smoothing": 0.2}, "ccn+ls-smoothing0.2-seed0"),
     (Network("vgg11"), {"adversarial_epsilon": 8 / 255}, "sm-fgsm0.0314-seed0"),
     (Network("vgg11"), {"adversarial_epsilon": 8 / 255, "adversarial_steps": 7}, "sm-pgd0.0314-seed0")],
)  # fmt: skip
def test_a_folder_s_name_says_what_is_in_it(network, settings, name):
    assert runs.folder_name(network, TrainConfig(**settings)) == name


def test_what_is_missing_damaged_or_another_network_is_said(saved, tmp_path):
    _, folder = saved
    with pytest.raises(FileNotFoundError, match="ccn train"):
        runs.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"expected a Network.*'sm'"):
        runs.load(folder, network=Network("mnist_cnn", "sm"))
    weights = folder / runs.WEIGHTS
    content = weights.read_bytes()
    for damaged in (content[:-9], content[:20], b""):
        weights.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged"):
            runs.load(folder)
    flipped = bytearray(content)
    flipped[-1] ^= 1
    weights.write_bytes(flipped)
    with pytest.raises(ValueError, match="is not what"):
        runs.load(folder)


def test_a_plain_network_s_weights_do_not_pass_for_a_compact_one_s(saved):
    _, folder = saved
    state = load_file(folder / runs.WEIGHTS)
    header = {"ccn": json.dumps({"network": {"architecture": "mnist_cnn", "variant": "ccn"}, "shape": [1, 28, 28],
                                 "classes": 10})}  # fmt: skip
    plain = {name: tensor for name, tensor in state.items() if not name.endswith("alpha")}
    save_file(plain, folder / runs.WEIGHTS, header)
    with pytest.raises(ValueError, match="does not fit"):
        runs.load(folder)
    save_file(plain, folder / runs.WEIGHTS)
    with pytest.raises(ValueError, match="names no network"):
        runs.load(folder)


@pytest.mark.parametrize("change", [{"shape": [3]}, {"shape": "x"}, {"classes": None}, {"network": {"width": "x"}},
                                    {"network": {"width": -1}}, {"network": 3}, {"network": {"depth": 2}}])  # fmt: skip
def test_a_header_that_makes_no_sense_is_refused(few_digits, tmp_path, change):
    network = Network("vgg11", "sm", width=0.125)
    header = {"network": dataclasses.asdict(network), "shape": [3, 32, 32], "classes": 10}
    if isinstance(change.get("network"), dict):
        change = {"network": {**header["network"], **change["network"]}}
    save_file(network.build((3, 32, 32), 10).state_dict(), tmp_path / runs.WEIGHTS,
              {"ccn": json.dumps({**header, **change})})  # fmt: skip
    with pytest.raises(ValueError, match=f"{runs.WEIGHTS} (does not fit|is damaged)"):
        runs.load(tmp_path)


class Stranger:
    def __reduce__(self):
        return (pytest.fail, ("a checkpoint ran code",))


def test_a_stranger_s_pickle_runs_no_code(few_digits, tmp_path):
    from ccn_kernels.robustness import training
    from ccn_kernels.robustness.config import TrainConfig

    (tmp_path / runs.WEIGHTS).write_bytes(pickle.dumps(Stranger()))
    with pytest.raises(ValueError, match="is damaged"):
        runs.load(tmp_path)
    torch.save({"identity": Stranger()}, tmp_path / training.PROGRESS)
    with pytest.raises(ValueError, match="is damaged"):
        training.train(Network("mnist_cnn"), few_digits, TrainConfig(epochs=1), tmp_path)


def test_networks_take_the_images_they_are_for():
    with pytest.raises(ValueError, match="1x28x28"):
        Network("mnist_cnn").build((3, 32, 32), 10)
    with pytest.raises(ValueError, match="architecture must be one of"):
        Network("resnet").build((3, 32, 32), 10)
    assert Network("vgg11", "ccn", width=0.125).build((3, 64, 64), 7)(torch.rand(2, 3, 64, 64)).shape == (2, 7)
    assert Network("mnist_cnn", "ccn", "fc1").title == "CCN, compact fc1"
