"""The commands as a shell runs them."""

import argparse
import json
import subprocess
import sys

import pytest
import torch
from small import fails, succeeds

from ccn_kernels import cli, robustness
from ccn_kernels.robustness import command, data, paper, runs, scales, tree
from ccn_kernels.robustness.command import EXTRA
from ccn_kernels.robustness.lab import Lab

TRAIN = ["train", "--epochs", "1", "--batch-size", "32"]


@pytest.fixture
def few(few_digits, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *args, **options: few_digits._replace(name="digits"))


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
    printed = succeeds(capsys, "attack", tmp_path / "ccn", "--crafted-on", tmp_path / "sm", "--epsilons", "8/255", 0.3)
    assert "CCN under transfer, 40 images" in printed
    assert "ε = 0.03137" in printed


@pytest.mark.usefixtures("few")
def test_what_is_wrong_is_said(tmp_path, capsys):
    assert "is missing" in fails(capsys, "attack", tmp_path)
    succeeds(capsys, *TRAIN, "--out", tmp_path / "ccn")
    assert "other settings" in fails(capsys, *TRAIN, "--seed", 1, "--out", tmp_path / "ccn")
    assert "expected a Network" in fails(capsys, *TRAIN, "--variant", "sm", "--out", tmp_path / "ccn")
    assert "compact_layer must be one of" in fails(capsys, *TRAIN, "--compact-layer", "fc9", "--out", tmp_path / "x")
    assert "table must be one of 1, 2" in fails(capsys, "table", "10")
    assert "figure must be one of 1, 2, 5, 6" in fails(capsys, "figure", "three")
    assert "epochs must be 1 or more, got 0" in fails(capsys, "train", "--epochs", 0, "--out", tmp_path / "x")
    attack = ["attack", tmp_path / "ccn"]
    assert "--epsilons is for fgsm and pgd" in fails(capsys, *attack, "--attack", "cw", "--epsilons", 0.1)
    assert "--crafted-on is for fgsm alone" in fails(capsys, *attack, "--attack", "pgd", "--crafted-on", tmp_path)
    assert not (tmp_path / "x").exists()


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("content", ["[]", "{}", '{"data": "digits"}', '{"data": {"name": "digits", "shape": []}}'])
def test_a_record_that_names_no_data_is_refused(tmp_path, capsys, content):
    succeeds(capsys, *TRAIN, "--out", tmp_path)
    (tmp_path / runs.RECORD).write_text(content)
    assert "run.json" in fails(capsys, "attack", tmp_path)


def test_a_tree_is_attacked_at_the_size_that_the_network_was_trained_for(tmp_path, capsys):
    digits = tree.of_digits(tmp_path / "tree")
    for path in digits.glob("*/*/*"):
        if int(path.stem) >= 60:
            path.unlink()
    common = ["--data", digits, "--out", tmp_path / "net"]
    succeeds(capsys, *TRAIN, "--dataset", "folder", "--image-size", 16, *common)
    moved = digits.rename(tmp_path / "elsewhere")
    printed = succeeds(capsys, "attack", tmp_path / "net", "--data", moved, "--count", 8)
    assert "CCN under fgsm, 8 images" in printed


@pytest.mark.parametrize("asked", [["table", "1"], ["figure", "1"], ["study"], ["report", "net"]])
def test_what_one_process_makes(asked, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "torchrun is for `ccn train`" in fails(capsys, *asked, "--out", tmp_path / "x")


def test_figures_have_one_data_set(capsys):
    for option in ("--datasets", "--images"):
        with pytest.raises(SystemExit):
            cli.main(["figure", "1", option, "mnist"])
        assert "unrecognized arguments" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device cuda: PyTorch sees no CUDA GPU" in fails(capsys, *TRAIN, "--device", "cuda", "--out", tmp_path)


def test_torchrun_s_processes_have_a_gpu_each(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert command.device_of(argparse.Namespace(device=None)) == "cuda:3"
    assert chosen == ["cuda:3"]


def test_table_5_asks_for_its_tree_before_anything_is_trained(tmp_path, capsys, monkeypatch):
    error = fails(capsys, "table", "5", "--scale", "small", "--out", tmp_path / "x")
    assert "--images DIR" in error
    error = fails(capsys, "table", "all", "--scale", "small", "--datasets", "mnist", "cifar10", "--data", tmp_path)
    assert "is missing" in error


def test_all_tables_leave_out_what_has_no_data(tmp_path, capsys, monkeypatch):
    made, looked = [], []
    monkeypatch.setattr(Lab, "data", lambda self, dataset: looked.append(dataset))
    monkeypatch.setattr("ccn_kernels.robustness.tables.run", lambda number, *args: made.append(number) or "")
    printed = succeeds(capsys, "table", "all", "--scale", "small", "--out", tmp_path)
    assert "table 5 is left out" in printed
    assert made == [number for number in paper.TABLES if number != 5]
    assert looked == ["mnist", "cifar10"]
    made.clear()
    succeeds(capsys, "table", "all", "--scale", "small", "--out", tmp_path, "--images", tmp_path)
    assert made == list(paper.TABLES)


def test_data_that_is_not_there_is_said(tmp_path, capsys):
    assert "--data DIR" in fails(capsys, *TRAIN, "--dataset", "mnist", "--out", tmp_path / "x")
    error = fails(capsys, "table", "1", "--scale", "small", "--data", tmp_path, "--out", tmp_path / "x")
    assert "train-images-idx3-ubyte.gz" in error
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("epsilon", ["-0.1", "8", "nan", "x", "1/0", "256/255"])
def test_a_radius_outside_the_range_is_refused(epsilon, capsys):
    with pytest.raises(SystemExit):
        cli.main(["attack", "somewhere", "--epsilons", epsilon])
    assert "--epsilons" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"), [("--count", "0"), ("--count", "many"), ("--hops", "-1"), ("--hops", "1.5")]
)
def test_numbers_that_cannot_be_are_refused(option, value, capsys):
    with pytest.raises(SystemExit):
        cli.main(["report", "somewhere", option, value])
    said = capsys.readouterr().err
    assert f"argument {option}: must be " in said
    assert f"got {value}" in said


def test_bars_are_rare_in_files(tmp_path):
    """Thousands of lines that nobody reads would hide the one that says what went wrong."""
    command = [sys.executable, "-m", "ccn_kernels", "train", "--variant", "sm", "--epochs", "1", "--device", "cpu"]
    done = subprocess.run([*command, "--out", tmp_path], capture_output=True, text=True, check=True)
    assert "100%" in done.stderr
    assert len(done.stderr.splitlines()) < 8


@pytest.mark.usefixtures("few")
def test_a_table_is_gone_on_with(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(scales.SCALES, "smoke", scales.SMOKE)
    arguments = ["table", "13", "--epochs", "1", "--batch-size", "32", "--out", tmp_path]
    first = succeeds(capsys, *arguments)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    named = [path.name for path in written]
    assert named.count(runs.WEIGHTS) == 8  # fc3's network is L2SM's
    assert sum(name.startswith("fgsm-") for name in named) == 8 + 8  # the first attack of the minimum is one, too
    assert succeeds(capsys, *arguments) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == written


def test_the_extra_is_named_where_it_is_missing(capsys, monkeypatch):
    for name in ("tables", "figures"):  # to be imported anew
        monkeypatch.delitem(sys.modules, f"{robustness.__name__}.{name}", raising=False)
        monkeypatch.delattr(robustness, name, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert EXTRA in fails(capsys, "table", "1")


@pytest.mark.usefixtures("few")
def test_certify_sets_networks_side_by_side(tmp_path, capsys):
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        succeeds(capsys, *TRAIN, "--out", folder)
    out = tmp_path / "all.json"
    printed = succeeds(capsys, "certify", *folders, "--methods", "interval", "--images", 2, "--out", out)
    assert printed.count("| CCN ") == 4
    networks = json.loads(out.read_text())["networks"]
    assert networks == [json.loads((folder / "certified.json").read_text()) for folder in folders]
