"""compare.py: ratios of two records, and what cannot be compared."""

import compare
import pytest


def table_of(capsys, *arguments):
    compare.main([str(argument) for argument in arguments])
    text = capsys.readouterr().out
    return text, [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]


def test_ratios_ties_and_means(save, row, capsys):
    old = save([row(median=1000.0), row(median=400.0, workload="256-256@8")], "old.json")
    new = save([row(median=500.0), row(median=402.0, workload="256-256@8")], "new.json")
    text, lines = table_of(capsys, old, new)
    verdicts = {line[1]: line[-1] for line in lines if line[0] == "kernel-notes" and "@" in line[1]}
    assert verdicts == {"64-128@16": "0.500", "256-256@8": "1.005 ~"}
    assert lines[-1][-3:] == ["2", "0.709", "1.005"]  # the root of 0.5 * 1.005
    assert "devices differ" not in text


def test_rows_of_one_file_alone_and_failures_are_said(save, row, capsys):
    red = row(median=None, workload="c", failure="wrong by 0.12 (at most 0.01)")
    old = save([row(workload="a"), row(workload="c")], "old.json")
    new = save([row(workload="b"), red], "new.json", device="NVIDIA H200")
    text, lines = table_of(capsys, old, new)
    verdicts = {line[1]: line[-1] for line in lines[2:]}
    assert verdicts == {"a": "only in old", "b": "only in new", "c": "new failed: wrong by 0.12 (at most 0.01)"}
    assert "No row ran in both." in text
    assert "The devices differ" in text
    assert "new.json: NVIDIA H200" in text


def test_formats_backends_and_passes_are_told_apart(save, row, capsys):
    kinds = [
        {},
        {"memory_format": "contiguous"},
        {"backend": "reference"},
        {"variant": "relu"},
        {"pass": "training"},
    ]
    old = save([row(median=100.0, **kind) for kind in kinds], "old.json")
    new = save([row(median=100.0 * number, **kind) for number, kind in enumerate(kinds, 2)], "new.json")
    _, lines = table_of(capsys, old, new)
    assert [line[-1] for line in lines[2:7]] == ["2.000", "3.000", "4.000", "5.000", "6.000"]
    _, lines = table_of(capsys, old, new, "--passes", "training")
    assert [line[-1] for line in lines if line[-1] == "6.000"] == ["6.000"] * 2  # the row, and the worst of its group


def test_another_provider(save, row, capsys):
    old = save([row("conv", 100.0), row()], "old.json")
    new = save([row("conv", 150.0), row()], "new.json")
    _, lines = table_of(capsys, old, new, "--provider", "conv")
    assert lines[2][-1] == "1.500"


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, [], "old.json: there is no such file"),
        ("{", [], "old.json is damaged"),
        ("[]", [], "old.json is no record"),
        ('{"environment": {}, "rows": []}', [], "old.json has no row of the provider 'ccn'; it has none at all"),
    ],
)
def test_errors_name_the_file(tmp_path, save, row, content, arguments, message):
    if content:
        (tmp_path / "old.json").write_text(content)
    new = save([row()], "new.json")
    with pytest.raises(SystemExit, match=message):
        compare.main([str(tmp_path / "old.json"), str(new), *arguments])


def test_a_provider_that_was_not_measured_is_named(save, row):
    path = save([row()])
    with pytest.raises(SystemExit, match="has no row of the provider 'conv'; it has ccn"):
        compare.main([str(path), str(path), "--provider", "conv"])
    with pytest.raises(SystemExit, match="no row of ccn for --passes backward"):
        compare.main([str(path), str(path), "--passes", "backward"])
