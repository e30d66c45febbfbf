"""`ccn study`: which networks it trains, what it keeps, and what it says of several seeds."""

import json

import pytest
from small import fails, succeeds

from ccn_kernels.robustness import data, study, training
from ccn_kernels.robustness.study import Kind, Settings

SETTINGS = Settings((0.1, 0.3), count=12, black_box=4, steps=4,
                    changes={"epochs": 1, "batch_size": 32, "adversarial_steps": 2})  # fmt: skip


@pytest.fixture
def few(few_digits, monkeypatch):
    found = few_digits._replace(name="digits")
    monkeypatch.setattr(data, "load", lambda *args, **options: found)
    return found


def test_every_method_in_every_training_and_one_setting_at_a_time():
    found = study.kinds(["SM", "CCN"], ["plain", "pgd"], {"delta": [0.1], "label_smoothing": [0.2, 0.3]})
    assert found == [
        Kind("SM"), Kind("CCN"), Kind("SM", "pgd"), Kind("CCN", "pgd"),
        Kind("CCN", delta=0.1), Kind("CCN", label_smoothing=0.2), Kind("CCN", label_smoothing=0.3),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="must be among"):
        study.kinds([], [], {"momentum": [0.5]})


def test_trainings_attack_at_the_largest_radius():
    plain, fgsm, pgd = (SETTINGS.config(Kind("SM", name), "digits", 3) for name in study.TRAININGS)
    assert {one.seed for one in (plain, fgsm, pgd)} == {3}
    assert {one.epochs for one in (plain, fgsm, pgd)} == {1}
    assert (plain.adversarial_epsilon, fgsm.adversarial_epsilon, pgd.adversarial_epsilon) == (0, 0.3, 0.3)
    assert (plain.adversarial_steps, fgsm.adversarial_steps, pgd.adversarial_steps) == (0, 0, 2)
    assert (fgsm.adversarial_warmup, pgd.adversarial_warmup) == (0, 1 / 3)
    assert SETTINGS.config(Kind("CCN", label_smoothing=0.3), "digits", 0).label_smoothing == 0.3


def test_a_study_grows_and_does_nothing_twice(few, tmp_path, monkeypatch):
    text = study.run([Kind("SM"), Kind("CCN", delta=0.5)], [0], few, SETTINGS, tmp_path)
    assert "CCN, δ 0.5" in text
    assert " ± " not in text.partition("Mean")[0]
    text = study.run([Kind("SM"), Kind("SM", "pgd")], [0, 1], few, SETTINGS, tmp_path)
    written = json.loads((tmp_path / "study.json").read_text())
    assert sorted((row["method"], row["training"], row["seed"]) for row in written["rows"]) == [
        ("CCN", "plain", 0), ("SM", "pgd", 0), ("SM", "pgd", 1), ("SM", "plain", 0), ("SM", "plain", 1),
    ]  # fmt: skip
    assert " ± " in text.partition("Mean")[0]
    for row in written["rows"]:
        assert len(row["minimum"]) == len(row["fgsm"]) == 2
        assert all(low <= high for low, high in zip(row["minimum"], row["white_box"], strict=True))
        assert row["images"] == 12
    assert (tmp_path / "study.md").read_text() == text + "\n"
    assert (tmp_path / "study.png").stat().st_size > 1000
    monkeypatch.setattr(training._Training, "_update", lambda *args: pytest.fail("trained again"))
    assert study.run([Kind("SM")], [0], few, SETTINGS, tmp_path) == text


def test_rows_that_were_judged_otherwise_stand_in_another_table(few, tmp_path):
    study.run([Kind("SM")], [0], few, SETTINGS, tmp_path)
    study.run([Kind("SM")], [0], few, Settings((0.2,), 8, 0, 4, SETTINGS.changes), tmp_path)
    (row,) = json.loads((tmp_path / "study.json").read_text())["rows"]
    assert row["judged"] == {"epsilons": [0.2], "count": 8, "steps": 4}


def test_the_spread_is_that_of_the_seeds():
    assert study.spread([50.0]) == "50.0"
    assert study.spread([50.0, 52.0, 54.0]) == "52.0 ± 2.0"


def test_a_file_that_is_no_row_is_named(few, tmp_path):
    (tmp_path / "digits" / "study").mkdir(parents=True)
    (tmp_path / "digits" / "study" / "foreign.json").write_text("[]")
    with pytest.raises(ValueError, match=r"foreign\.json is no row"):
        study.run([Kind("SM")], [0], few, SETTINGS, tmp_path)


@pytest.mark.usefixtures("few")
def test_the_command(tmp_path, capsys):
    options = ["--epochs", 1, "--batch-size", 32, "--seeds", 0, "--count", 4, "--black-box", 0, "--out", tmp_path]
    printed = succeeds(capsys, "study", "--methods", "SM", "--trainings", "plain", "--deltas", 0.5, *options)
    assert "CCN, δ 0.5" in printed
    assert f"wrote {tmp_path / 'study'}.md" in printed
    assert "delta must be" in fails(capsys, "study", "--methods", "--deltas", -1, *options)
    assert "label_smoothing must be" in fails(capsys, "study", "--methods", "--smoothings", 2, *options)
