import dataclasses
import json

import pytest

from ccn_kernels import cli
from ccn_kernels.robustness import data, demo

CONFIG = dataclasses.replace(demo.DEFAULTS["digits"], epochs=1)


@pytest.fixture
def small(few_digits, monkeypatch):
    monkeypatch.setattr(data, "load", lambda name, folder: few_digits)
    # ten digits of ten classes are drawn: these are the first of each class
    assert few_digits.test.labels.unique().numel() == 10


@pytest.mark.usefixtures("small")
def test_the_demo_leaves_a_table_a_picture_and_results_and_goes_on(tmp_path, monkeypatch, capsys):
    attack = demo._attack

    def interrupted(trained, *args):
        if trained.network.title == "CCN":
            raise KeyboardInterrupt
        return attack(trained, *args)

    with monkeypatch.context() as context:
        context.setattr(demo, "_attack", interrupted)
        with pytest.raises(KeyboardInterrupt):
            demo.run("digits", None, tmp_path, CONFIG)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(kept) == 4  # two networks, two attacks on the first

    picture = demo.run("digits", None, tmp_path, CONFIG)
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert str(picture) in printed
    for word in ("SM", "CCN+LS", "FGSM 0.3", "PGD 0.3", "two-branch", "fused"):
        assert word in printed
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["networks"]) == {"SM", "CCN", "CCN+LS"}
    assert set(result["images_per_second"]) == {"plain", "two-branch", "fused"}


def test_ctrl_c_ends_the_command_with_the_shell_s_status(monkeypatch, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupt)
    assert cli.main(["demo"]) == 130
    assert "run the command again" in capsys.readouterr().err


def test_a_missing_data_folder_is_an_error_message(tmp_path, capsys):
    assert cli.main(["demo", "--dataset", "mnist", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "train-images-idx3-ubyte.gz" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_env_prints_every_backend(capsys):
    assert cli.main(["env"]) == 0
    printed = capsys.readouterr().out
    for word in ("triton", "cuda", "cpu", "reference", "torch"):
        assert word in printed
    assert cli.main(["env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["backends"]["reference"] == "available"
