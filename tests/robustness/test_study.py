"""`ccn study`: which networks it trains, what it keeps, and what it says of several seeds."""

import dataclasses
import json

import pytest
from small import fails, succeeds

from ccn_kernels.robustness import config, data, figures, study, summary, training
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
    plain, fgsm, pgd = (SETTINGS.config(Kind("SM", name), "digits", 3) for name in config.TRAININGS)
    assert {one.seed for one in (plain, fgsm, pgd)} == {3}
    assert {one.epochs for one in (plain, fgsm, pgd)} == {1}
    assert (plain.adversarial_epsilon, fgsm.adversarial_epsilon, pgd.adversarial_epsilon) == (0, 0.3, 0.3)
    assert (plain.adversarial_steps, fgsm.adversarial_steps, pgd.adversarial_steps) == (0, 0, 2)
    assert (fgsm.adversarial_warmup, pgd.adversarial_warmup) == (0, 1 / 3)
    assert SETTINGS.config(Kind("CCN", label_smoothing=0.3), "digits", 0).label_smoothing == 0.3


def rows_of(folder):
    return json.loads((folder / "digits" / "study.json").read_text())["rows"]


def test_a_study_grows_and_does_nothing_twice(few, tmp_path, monkeypatch):
    text = study.run([Kind("SM"), Kind("CCN", delta=0.5)], [0], few, SETTINGS, tmp_path)
    assert "CCN, δ 0.5" in text
    assert " ± " not in text.partition("Mean")[0]
    text = study.run([Kind("SM"), Kind("SM", "pgd")], [0, 1], few, SETTINGS, tmp_path)
    rows = rows_of(tmp_path)
    assert [(row["training"], row["method"], row["delta"], row["config"]["seed"]) for row in rows] == [
        ("plain", "SM", None, 0), ("plain", "SM", None, 1), ("plain", "CCN", 0.5, 0), ("pgd", "SM", None, 0),
        ("pgd", "SM", None, 1),
    ]  # fmt: skip
    assert " ± " in text.partition("Mean")[0]
    assert "PGD-2 ε = 0.3" in text
    for row in rows:
        assert len(row["minimum"]) == len(row["fgsm"]) == 2
        assert all(low <= high for low, high in zip(row["minimum"], row["white_box"], strict=True))
    assert (tmp_path / "digits" / "study.md").read_text() == text + "\n"
    assert (tmp_path / "digits" / "study.png").stat().st_size > 1000
    monkeypatch.setattr(training._Training, "_update", lambda *args: pytest.fail("trained again"))
    monkeypatch.setattr(study.worst, "worst_case", lambda *args: pytest.fail("attacked again"))
    assert study.run([Kind("SM")], [0], few, SETTINGS, tmp_path) == text
    assert rows_of(tmp_path) == rows


@pytest.mark.parametrize("change", [{"count": 8}, {"black_box": 0}, {"steps": 3}, {"epsilons": (0.1, 0.2)}], ids=str)
def test_rows_that_were_judged_otherwise_stand_in_another_table(few, tmp_path, change):
    study.run([Kind("SM")], [0], few, SETTINGS, tmp_path)
    study.run([Kind("SM")], [1], few, dataclasses.replace(SETTINGS, **change), tmp_path)
    (row,) = rows_of(tmp_path)
    assert row["config"]["seed"] == 1
    study.run([Kind("SM")], [1], few, SETTINGS, tmp_path)
    assert [row["config"]["seed"] for row in rows_of(tmp_path)] == [0, 1]


def test_a_network_of_before_a_setting_stands_among_the_others(few, tmp_path):
    study.run([Kind("SM")], [0], few, SETTINGS, tmp_path)
    (record,) = tmp_path.glob("digits/*/run.json")
    older = json.loads(record.read_text())
    del older["config"]["adversarial_steps"]
    record.write_text(json.dumps(older))
    (row,) = tmp_path.glob("digits/study/*.json")
    row.unlink()
    text = study.run([Kind("SM")], [0, 1], few, SETTINGS, tmp_path)
    assert " ± " in text.partition("Mean")[0]


def test_other_trainings_are_no_other_seeds(few, tmp_path):
    study.run([Kind("SM")], [0], few, SETTINGS, tmp_path)
    slower = dataclasses.replace(SETTINGS, changes={**SETTINGS.changes, "learning_rate": 0.01})
    text = study.run([Kind("SM")], [1], few, slower, tmp_path)
    assert " ± " not in text.partition("Mean")[0]
    assert len(rows_of(tmp_path)) == 2


def test_more_images_than_there_are_and_radii_twice(few, tmp_path):
    settings = Settings((0.3, 0.1, 0.1), count=1000, black_box=0, steps=2, changes=SETTINGS.changes)
    text = study.run([Kind("SM")], [0], few, settings, tmp_path)
    assert "the first 40." in text
    (row,) = rows_of(tmp_path)
    assert row["judged"]["epsilons"] == [0.1, 0.3]
    assert len(row["minimum"]) == 2


def test_one_that_diverged_is_named_and_the_others_go_on(few, tmp_path, monkeypatch):
    def fragile(network, data, config, *args):
        if network.variant == "sm":
            raise training.DivergedError("SM diverged")
        return train(network, data, config, *args)

    train = study.train
    monkeypatch.setattr(study, "train", fragile)
    text = study.run([Kind("SM"), Kind("CCN")], [0], few, SETTINGS, tmp_path)
    assert "Diverged: plain, seed 0: SM diverged" in text
    assert [row["method"] for row in rows_of(tmp_path)] == ["CCN"]


def test_the_spread_is_that_of_the_seeds():
    assert summary.spread([50.0]) == "50.0"
    assert summary.spread([50.0, 52.0, 54.0]) == "52.0 ± 2.0"


def test_the_picture_has_a_panel_a_training_and_the_mean_over_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "save", lambda figure, path: figure)
    panels = {"plain": {"SM": [[100, 40], [90, 20]], "CCN, δ 1": [[80, 10]]}, "FGSM": {"SM": [[100, 50]]}}
    for repeated in (1, 3):
        shown = {f"{name} {i}": lines for name, lines in panels.items() for i in range(repeated)}
        drawn = figures.spreads(tmp_path / "x.png", "title", [0.0, 0.3], shown)
        assert [axis.get_title() for axis in drawn.axes] == list(shown)
        means, others = (list(line[0].get_ydata()) for line in drawn.axes[0].containers)
        assert (means, others) == ([95, 30], [80, 10])
        assert [text.get_text() for text in drawn.axes[0].get_legend().get_texts()] == ["SM", "CCN, δ 1"]


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [(Kind("CCN", delta=-1.0), {}, "delta must be"), (Kind("CCN", alpha=0.0), {}, "alpha must be"),
     (Kind("CCN", label_smoothing=2.0), {}, "label_smoothing must be"),
     (Kind("SM", "pgd"), {"epsilons": (0.0,)}, "epsilons must have a radius above 0"),
     (Kind("SM", "pgd"), {"changes": {"adversarial_steps": 0}}, "adversarial_steps must be 1 or more")],
    ids=str,
)  # fmt: skip
def test_bad_settings_are_named_before_anything_is_trained(few, tmp_path, monkeypatch, kind, change, message):
    monkeypatch.setattr(study, "train", lambda *args: pytest.fail("trained"))
    with pytest.raises(ValueError, match=message):
        study.run([Kind("SM"), kind], [0], few, dataclasses.replace(SETTINGS, **change), tmp_path)


def test_unknown_kinds_are_named():
    with pytest.raises(ValueError, match="training must be one of"):
        Kind("SM", "madry")
    with pytest.raises(ValueError, match="method must be one of"):
        Kind("ResNet")


def test_a_file_that_is_no_row_is_named_and_a_temporary_one_passed_over(few, tmp_path):
    folder = tmp_path / "digits" / "study"
    folder.mkdir(parents=True)
    (folder / "row.123.tmp.json").write_text("{")
    study.run([Kind("SM")], [0], few, SETTINGS, tmp_path)
    (folder / "foreign.json").write_text("[]")
    with pytest.raises(ValueError, match=r"foreign\.json is no row"):
        study.run([Kind("SM")], [0], few, SETTINGS, tmp_path)


@pytest.mark.usefixtures("few")
def test_the_command(tmp_path, capsys):
    options = ["--epochs", 1, "--batch-size", 32, "--seeds", 0, "--count", 4, "--black-box", 0, "--out", tmp_path]
    printed = succeeds(capsys, "study", "--methods", "--deltas", 0.5, *options)
    assert "CCN, δ 0.5" in printed
    assert f"wrote {tmp_path / 'digits' / 'study'}.md" in printed
    assert "delta must be" in fails(capsys, "study", "--methods", "--deltas", -1, *options)
    assert "label_smoothing must be" in fails(capsys, "study", "--methods", "--smoothings", 2, *options)
