"""The commands as a shell runs them."""

import json
import sys

import pytest

from ccn_kernels import cli, robustness
from ccn_kernels.robustness import data, runs, scales
from ccn_kernels.robustness.command import EXTRA

TRAIN = ["train", "--epochs", "1", "--batch-size", "32"]


@pytest.fixture
def few(few_digits, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *args, **options: few_digits._replace(name="digits"))


def succeeds(capsys, *arguments):
    assert cli.main(list(map(str, arguments))) == 0
    return capsys.readouterr().out


def fails(capsys, *arguments):
    assert cli.main(list(map(str, arguments))) == 1
    return capsys.readouterr().err


@pytest.mark.usefixtures("few")
def test_train_then_attack(tmp_path, capsys):
    for variant in ("sm", "ccn"):
        printed = succeeds(capsys, *TRAIN, "--variant", variant, "--out", tmp_path / variant, "--milestones", "0.5")
        assert "% of the test images right" in printed
    record = json.loads((tmp_path / "ccn" / runs.RECORD).read_text())
    assert (record["config"]["batch_size"], record["config"]["milestones"]) == (32, [0.5])
    for attack in ("fgsm", "pgd", "deepfool", "deepfool_2018"):
        printed = succeeds(capsys, "attack", tmp_path / "ccn", "--attack", attack, "--count", 4)
        assert f"CCN under {attack.split('_')[0]}, 4 images" in printed
        assert "gradients all zero" in printed
    printed = succeeds(capsys, "attack", tmp_path / "ccn", "--crafted-on", tmp_path / "sm", "--epsilons", 0.3)
    assert "CCN under transfer, 40 images" in printed


@pytest.mark.usefixtures("few")
def test_what_is_wrong_is_said(tmp_path, capsys):
    assert "is missing" in fails(capsys, "attack", tmp_path)
    succeeds(capsys, *TRAIN, "--out", tmp_path / "ccn")
    assert "other settings" in fails(capsys, *TRAIN, "--seed", 1, "--out", tmp_path / "ccn")
    assert "expected a Network" in fails(capsys, *TRAIN, "--variant", "sm", "--out", tmp_path / "ccn")
    assert "compact_layer must be one of" in fails(capsys, *TRAIN, "--compact-layer", "fc9", "--out", tmp_path / "x")
    assert "table must be one of 1, 2" in fails(capsys, "table", "10")
    assert "figure must be one of 1, 2, 5, 6" in fails(capsys, "figure", "three")


def test_data_that_is_not_there_is_said(tmp_path, capsys):
    assert "--data DIR" in fails(capsys, *TRAIN, "--dataset", "mnist", "--out", tmp_path / "x")
    error = fails(capsys, "table", "1", "--scale", "small", "--data", tmp_path, "--out", tmp_path / "x")
    assert "train-images-idx3-ubyte.gz" in error
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("epsilon", ["-0.1", "8", "nan", "x"])
def test_a_radius_outside_the_range_is_refused(epsilon, capsys):
    with pytest.raises(SystemExit):
        cli.main(["attack", "somewhere", "--epsilons", epsilon])
    assert "--epsilons" in capsys.readouterr().err


@pytest.mark.usefixtures("few")
def test_a_table_is_gone_on_with(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(scales.SCALES, "smoke", scales.SMOKE)
    arguments = ["table", "13", "--epochs", "1", "--batch-size", "32", "--out", tmp_path]
    first = succeeds(capsys, *arguments)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(written) == 8 + 8  # networks (fc3's is L2SM's), and what became of them under attack
    assert succeeds(capsys, *arguments) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == written


def test_the_extra_is_named_where_it_is_missing(capsys, monkeypatch):
    for name in ("tables", "figures"):  # to be imported anew
        monkeypatch.delitem(sys.modules, f"{robustness.__name__}.{name}", raising=False)
        monkeypatch.delattr(robustness, name, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert EXTRA in fails(capsys, "table", "1")
