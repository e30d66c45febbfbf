"""readme.py: the README says what the records say; the CPU targets judged from a record."""

import json

import pytest
import reading
import readme
import targets

TEXT = f"# Title\n\n{readme.START}\n\nan old table\n\n{readme.END}\n\nmore\n"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A checkout with a README and no records; pictures are drawn elsewhere (test_plot.py)."""
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(TEXT)
    monkeypatch.setattr(
        readme.plot, "draw", lambda record, folder: (folder / f"{record.name}-speedup.png").write_bytes(b"")
    )
    return tmp_path


def keep(root, path):
    """Puts a record where the README's are."""
    path.rename(root / "benchmarks" / "results" / path.name)


def cells(text, first):
    """Of the table's line that begins with these cells."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    return next(line[len(first) :] for line in lines if line[: len(first)] == first)


def test_this_readme_says_what_the_records_say():
    readme.main(["--check"])


def test_without_a_record_the_readme_stays(root, capsys):
    (root / "benchmarks" / "results" / "other.json").write_text('{"rows": 1}')
    readme.main([], root)
    readme.main(["--check"], root)
    assert (root / "README.md").read_text() == TEXT
    assert "no record yet" in capsys.readouterr().out


def test_tables_pictures_and_the_check(root, everything):
    keep(root, everything())
    with pytest.raises(SystemExit, match="make readme"):
        readme.main(["--check"], root)
    assert (root / "README.md").read_text() == TEXT
    assert not list((root / "docs").iterdir())
    readme.main([], root)
    text = (root / "README.md").read_text()
    assert text.startswith("# Title\n\n" + readme.START)
    assert text.endswith(f"{readme.END}\n\nmore\n")
    assert "an old table" not in text
    assert cells(text, ["3→64@32", "64", "training"]) == ["16.00", "1.40", "1.30", "1.20", "0.86"]
    assert cells(text, ["Cin ≥ 64, forward"]) == ["≤ 1.03, none above 1.08", "1.06 (worst 1.12)", "no"]
    assert "(docs/amd-epyc-speedup.png)" in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120
    text = " ".join(text.split())
    assert "AMD EPYC, 2 threads (AVX2), float32, PyTorch 2.13.0, ccn_kernels 0.1.0, 2026-11-24" in text
    assert "medians of 31 interleaved rounds" in text
    assert "p20 and p80 lie less than 2.0% of the median apart" in text
    assert "differs by up to 90% from itself" in text  # as conftest.py plants it
    assert "No GPU has been measured yet." in text
    readme.main(["--check"], root)


def test_a_gpus_table_has_the_goals_beside_it(root, everything):
    keep(root, everything(gpu=True))
    readme.main([], root)
    text = (root / "README.md").read_text()
    assert cells(text, ["64→128@16", "256"]) == ["30.00", "0.80", "0.92", "4.17", "1.88", "1.58", "50% (55%)"]
    assert cells(text, ["**geometric mean**"])[2:4] == ["0.80", "0.92"]
    assert cells(text, ["**goal**"])[2:7] == ["≤ 0.85", "≤ 1.00", "≥ 4", "-", "≥ 1.35"]
    assert "replayed from CUDA graphs" in text
    assert "On a CPU" not in text


def test_the_newest_record_counts(root, save, row):
    for number, date in ((1, "2026-01-02"), (2, "2026-11-24"), (3, "2026-05-05")):
        rows = [row("conv", 1000.0), row("ccn", 1000.0 * number)]
        keep(root, save(rows, f"amd-epyc-0.{number}.0.json", date=date, ccn_kernels=f"0.{number}.0"))
    aside = save([row("conv", 1000.0), row("ccn", 9000.0)], "amd-epyc-0.2.0.old.json", date="2026-12-24")
    keep(root, aside)
    readme.main([], root)
    assert cells((root / "README.md").read_text(), ["64→128@16", "64", "forward"])[-1] == "2.00"


def test_a_readme_without_the_marks_is_an_error(root, everything):
    keep(root, everything())
    (root / "README.md").write_text("nothing\n")
    with pytest.raises(SystemExit, match="lacks the lines"):
        readme.main([], root)
    assert (root / "README.md").read_text() == "nothing\n"


def record_of(save, row, ratios):
    """Ratios by workload and pass."""
    rows = [
        row(provider, 1000.0 * (ratio if provider == "ccn" else 1), workload, **{"pass": step})
        for (workload, step), ratio in ratios.items()
        for provider in ("conv", "ccn")
    ]
    return reading.load(save(rows))


@pytest.mark.parametrize(
    ("ratios", "measured", "met"),
    [
        ({"64-128@16": 1.00, "256-256@8": 1.05}, "1.02 (worst 1.05)", True),
        ({"64-128@16": 0.90, "256-256@8": 1.09}, "0.99 (worst 1.09)", False),  # none may be above 1.08
        ({"64-128@16": 1.04, "256-256@8": 1.04}, "1.04 (worst 1.04)", False),
        ({"3-64@32": 0.5}, "not measured", None),
    ],
)
def test_targets_of_wide_layers(save, row, ratios, measured, met):
    record = record_of(save, row, {(workload, "forward"): ratio for workload, ratio in ratios.items()})
    judged = {target.name: target for target in targets.targets(record)}
    assert judged["Cin ≥ 64, forward"][2:] == (measured, met)
    assert judged["Cin ≥ 64, training"].met is None


def test_targets_of_narrow_layers(save, row):
    ratios = {("3-64@32", "forward"): 1.5, ("3-64@32", "training"): 1.41, ("vgg11 32-32@28", "forward"): 1.1}
    judged = {target.name: target for target in targets.targets(record_of(save, row, ratios))}
    assert judged["3→64@32, forward"][1:] == ("≤ 1.5", "1.50", True)
    assert judged["3→64@32, training"].met is False
    assert judged["32→32@28, forward"].met is True


def test_a_wrong_or_missing_row_is_no_speed(save, row):
    rows = [row("conv"), row("ccn", None, failure="wrong by 0.12 (at most 0.01)")]
    record = reading.load(save(rows))
    assert all(target.met is None for target in targets.targets(record))
    assert cells(readme.cpu_table(record), ["64→128@16", "64", "forward"]) == ["1.00"]
    assert json.loads(record.path.read_text())["rows"][1]["median_us"] is None
