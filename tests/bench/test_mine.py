"""A user's own model: which layers are seen, that they are checked before they are timed, and what is printed."""

import copy
import json
import sys

import pytest
import torch
from user_models import written

from ccn_kernels import CompactConv2d, cli
from ccn_kernels.bench import factory, mine, steps, swap
from ccn_kernels.bench.clock import HostClock

CLOCK = HostClock()
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")


@pytest.fixture
def models(tmp_path):
    return written(tmp_path)


def uses_of(target, input=None, **settings):
    subject = factory.load(target, input, **settings)
    compact, report = swap.swapped(subject.model)
    return swap.uses(subject, compact, report.converted), report


def test_layers_come_as_they_run_and_equal_ones_once(models):
    uses, report = uses_of(models("several"), "2x3x8x8")
    assert [(use.names, use.calls) for use in uses] == [(["0"], 1), (["2", "5"], 3), (["9"], 1), (["12"], 1)]
    assert [swap.kind(swap._bare(use.plain)) for use in uses] == [
        "Conv2d 3→4 3x3", "Conv2d 4→4 3x3", "Conv2d 4→6 3x3, stride 2x2, 2 groups", "Linear 54→5"
    ]  # fmt: skip
    assert "weight or spectral norm" in report.kept["7"]
    assert "parametrised" in report.kept["8"]


def test_inputs_are_seen_as_they_are(models):
    uses, _ = uses_of(models("several"), "2x3x8x8", memory_format=torch.channels_last, dtype=torch.bfloat16)
    first, second, *_ = (use.fresh_input("cpu") for use in uses)
    assert (first.requires_grad, second.requires_grad) == (False, True)
    assert second.shape == (2, 4, 8, 8)
    assert second.dtype == torch.bfloat16
    assert second.is_contiguous(memory_format=torch.channels_last)


def test_a_relu_that_is_fused_counts_on_the_plain_side_as_well(models):
    uses, _ = uses_of(models("several"), "2x3x8x8")
    assert [use.compact.activation for use in uses] == ["relu", None, None, None]
    assert isinstance(uses[0].plain[1], torch.nn.ReLU)


@pytest.mark.parametrize(("name", "input"), [("several", "2x3x8x8"), ("tokens", None), ("zeros", "2x2x3x3")])
def test_right_layers_are_timed_in_both_passes(models, name, input):
    for use in uses_of(models(name), input)[0]:
        row = swap.measure_layer(use, CLOCK, 2)
        assert row["failure"] is None
        assert row["relative_error"] < 1e-4
        for way in swap.PASSES:
            assert all(row[way][who]["median"] > 0 for who in swap.KINDS)


def test_frozen_layers_cost_no_gradients(models):
    uses, _ = uses_of(models("frozen"), "2x2x3x3")
    assert [use.calls for use in uses] == [1, 1]  # not equal, since only one of them learns
    assert all(swap.measure_layer(use, CLOCK, 2)["failure"] is None for use in uses)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_gate_fits_every_dtype(models, dtype):
    for use in uses_of(models("several"), "2x3x8x8", dtype=dtype)[0]:
        assert swap.measure_layer(use, CLOCK, 2)["failure"] is None


class Wrong(CompactConv2d):
    def forward(self, input):
        result = super().forward(input)
        return result if self.backend == "reference" else 1.01 * result


def test_a_wrong_layer_shows_no_speed(models):
    use = uses_of(models("small"), "2x3x4x4")[0][0]
    use.compact.__class__ = Wrong
    row = swap.measure_layer(use, CLOCK, 2)
    assert row["failure"] == "wrong by 0.01 (at most 3e-05)"
    assert not set(row) & set(swap.PASSES)
    assert "wrong by 0.01" in mine._layers([row])


def test_a_layer_that_fails_is_a_row(models, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore of it")

    monkeypatch.setattr(swap, "interleaved", full)
    row = swap.measure_layer(uses_of(models("small"), "2x3x4x4")[0][0], CLOCK, 2)
    assert row["failure"] == "out of memory: OutOfMemoryError: CUDA out of memory."


def test_the_whole_report(models, tmp_path, capsys):
    out = tmp_path / "mine.json"
    result = mine.run(models("several"), "2x3x8x8", rounds=2, out=out)
    assert json.loads(out.read_text()) == result
    assert [row["calls"] for row in result["layers"]] == [1, 3, 1, 1]
    assert set(result["whole"]) == {"inference", "training"}
    assert all(result["whole"]["training"][who]["peak_mb"] > 0 for who in swap.KINDS)
    printed = capsys.readouterr().out
    assert "0 + ReLU" in printed
    assert "2 and 1 more" in printed
    assert "stays plain: 7: its weight is computed by a hook" in printed
    assert printed.rstrip().splitlines()[-1].startswith("A training step takes ")


def test_layers_that_never_run_are_said_to_be_so(models, capsys):
    result = mine.run(models("tokens"), rounds=2)
    assert result["not_run"] == ["spare"]
    assert result["layers"][0]["input"] == [2, 5, 6]
    assert "not run by this input: spare" in capsys.readouterr().out


def test_the_users_model_is_left_alone(models):
    mine.run(models("kept"), "2x3x4x4", rounds=2)
    original = sys.modules["models"].KEPT
    before = copy.deepcopy(original.state_dict())
    mine.run(models("kept").replace("kept", "KEPT"), "2x3x4x4", rounds=2)
    assert [type(module).__name__ for module in original] == ["Conv2d", "ReLU", "Flatten", "Linear"]
    assert not any(module.training or module._forward_pre_hooks for module in original.modules())
    assert all(torch.equal(before[name], value) for name, value in original.state_dict().items())
    assert all(parameter.grad is None for parameter in original.parameters())


def test_an_interrupt_keeps_what_was_measured(models, tmp_path, monkeypatch, capsys):
    measure, out = swap.measure_layer, tmp_path / "mine.json"

    def once(use, *args):
        if use.names == ["3"]:
            raise KeyboardInterrupt
        return measure(use, *args)

    monkeypatch.setattr(swap, "measure_layer", once)
    with pytest.raises(KeyboardInterrupt):
        mine.run(models("small"), "2x3x4x4", rounds=2, out=out)
    assert len(json.loads(out.read_text())["layers"]) == 1
    assert "Conv2d 3→4 3x3" in capsys.readouterr().out


def test_a_model_that_cannot_train_says_so_and_still_infers(models):
    result = mine.run(models("untrained"), "2x2x3x3", rounds=2)
    # the compact copy's scale does learn, the plain model has nothing that does
    assert "nothing to train" in result["whole"]["training"]["failure"]
    assert "A training step fails" in mine.verdict(result["whole"])
    assert result["whole"]["inference"]["compact"]["median"] > 0


def test_the_loss_takes_every_output_that_has_a_gradient():
    one, two = torch.tensor([3.0], requires_grad=True), torch.tensor([4.0], dtype=torch.float16, requires_grad=True)
    loss = steps.loss_of({"a": one, "b": [two, torch.tensor([1]), torch.tensor([9.0])], "c": "text"})
    assert loss == 25.0


def whole(plain, compact, memory=2.0):
    both = {
        who: {"p20": median - 1, "median": median, "p80": median + 1, "peak_mb": peak}
        for who, median, peak in (("plain", plain, 2.0), ("compact", compact, memory))
    }
    return {"inference": both, "training": both}


def test_the_verdict_tells_ties_from_differences():
    assert mine.verdict(whole(100.0, 110.0, memory=3.0)) == (
        "A training step takes 1.10 times as long after the swap and 1.50 times the memory; "
        "an inference takes 1.10 times as long after the swap and 1.50 times the memory."
    )
    assert "takes 1.01 times as long after the swap (within the runs' spread)" in mine.verdict(whole(100.0, 101.0))


def test_tables_need_no_package(models, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tabulate", None)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    mine.run(models("zeros"), "2x2x3x3", rounds=2)
    assert "the model | Conv2d 2→2 1x1 | 2x2x3x3 | 1 | " in capsys.readouterr().out


def test_the_command_measures_in_a_process_of_its_own(models, tmp_path, capfd):
    out = tmp_path / "mine.json"
    command = ["bench", "--mine", models("small"), "--input", "2x3x4x4", "--rounds", "2", "--json", str(out)]
    assert cli.main([*command, "--format", "channels_last", "--dtype", "float64", "--device", "cpu"]) == 0
    assert "A training step takes" in capfd.readouterr().out
    environment = json.loads(out.read_text())["environment"]
    assert (environment["rounds"], environment["malloc"].count("=")) == (2, 2)


def test_the_commands_own_process_says_what_is_wrong(models, capfd):
    with pytest.raises(SystemExit, match="1"):
        cli.main(["bench", "--mine", models("broken"), "--input", "2x3", "--device", "cpu"])
    assert capfd.readouterr().err.startswith("ccn: --mine: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input", "2x3"], "--input goes with --mine only"),
        (["--json", "figures.json"], "--json goes with --mine only"),
        (["--mine", "m.py:net", "--suites", "vgg11"], "--suites does not go with --mine"),
        (["--processes", "2", "--dtypes", "float64"], "--dtypes does not go with --processes"),
        (["--mine", "m.py:net", "--formats", "channels_last,contiguous"], "--formats takes one name here"),
        (["--mine", "m.py:net", "--dtypes", "int8"], "--dtypes must be one of float32"),
        (["--mine", "m.py:net", "--rounds", "1"], "--rounds must be at least 2"),
        (["--mine", "m.py:net", "--device", "tpu"], "--device must be cpu or cuda"),
    ],
)
def test_options_that_do_not_fit_are_named(options, message, capsys):
    assert cli.main(["bench", *options]) == 1
    assert message in capsys.readouterr().err
