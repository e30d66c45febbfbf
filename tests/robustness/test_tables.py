"""The paper's tables as lists of cells, and what is printed and written of them."""

import csv
import dataclasses
import json

import pytest

from ccn_kernels.robustness import paper, scales, tables
from ccn_kernels.robustness.lab import Measured
from ccn_kernels.robustness.minimum import Entry, flags, lowered


def printed(table, **wanted):
    return [cell for cell in paper.cells(table) if cell.paper is not None
            and all(getattr(cell, name) == value for name, value in wanted.items())]  # fmt: skip


def value(table, row, **wanted):
    (cell,) = printed(table, row=row, **wanted)
    return cell.paper


def test_every_printed_number_has_a_cell():
    assert sum(len(printed(table)) for table in paper.TABLES) == 414
    for table in paper.TABLES:
        places = [(cell.dataset, cell.row, cell.column) for cell in paper.cells(table)]
        assert len(set(places)) == len(places), table


def test_cells_say_what_was_printed():
    assert value(1, "CCN", dataset="mnist", epsilon=0.3) == 81.38
    assert value(1, "CCN+LS", dataset="cifar10", epsilon=8 / 255) == 76.8
    assert value(2, "SM", dataset="mnist", ratio=0.5) == 0.53
    assert value(3, "CCN+LS", dataset="mnist") == 0.827
    assert value(4, "SM", dataset="cifar10", epsilon=16 / 255, adversarial_epsilon=8 / 255) == 43.09
    assert value(5, "CCN", attack="deepfool") == 0.1439
    assert value(6, "L2SM", epsilon=0.2) == 93.37
    assert value(7, "CCN", source="SM") == 64.15
    assert value(11, "CCN+LS", metric="success_pct") == 96.54
    assert value(13, "fc2", epsilon=0.3, compact_layer="fc2") == 58.71


def test_tables_repeat_one_another_as_the_paper_s_do():
    for method in ("SM", "CCN", "CCN+LS"):
        assert value(7, method, source=method) == value(1, method, dataset="mnist", epsilon=0.3)
        assert value(8, method, source=method) == value(1, method, dataset="cifar10", epsilon=8 / 255)
        assert value(9, method, dataset="mnist", epsilon=0.4) == value(1, method, dataset="mnist", epsilon=0.4)


def test_ours_adds_columns_that_the_paper_has_not():
    for table in (1, 4, 5, 6, 7, 8, 9, 13):
        minima = [cell for cell in paper.cells(table) if cell.attack == "minimum"]
        attacked = {(cell.dataset, cell.row, cell.epsilon) for cell in printed(table) if cell.epsilon}
        assert {(cell.dataset, cell.row, cell.epsilon) for cell in minima} == attacked
        assert len(minima) == len(attacked)
    assert {cell.attack for cell in paper.cells(2) if cell.paper is None} == {"deepfool_2018"}
    assert {cell.epsilon for cell in paper.cells(4) if cell.attack == "pgd"} == {0.3, 8 / 255}
    radii = [{c.epsilon for c in paper.cells(1) if c.attack == attack} for attack in ("fgsm", "pgd")]
    assert radii[0] == radii[1]
    assert scales.FULL.images["pgd"] == 1000


@pytest.mark.parametrize("table", [0, 10, 14])
def test_an_unknown_table_is_refused(table):
    with pytest.raises(ValueError, match="table must be one of"):
        paper.cells(table)


class Parrot:
    """A lab that measures what the paper printed, plus one, but for what it is told."""

    def __init__(self, **differently):
        self.scale, self.changes, self.seed = scales.SMALL, {}, 0
        self.differently = differently

    def measure(self, cell):
        number = (cell.paper or 0) + 1
        return Measured(self.differently.get(f"{cell.row}_{cell.source}", number), 10, {"zero gradients": 12.5})


@pytest.mark.parametrize("number", paper.TABLES)
def test_a_table_is_printed_and_written(number, tmp_path):
    text = tables.run(number, Parrot(), paper.DATASETS, tmp_path)
    assert f"Table {number}." in text
    assert text.count("+1.0") + text.count("+1.000") >= len(printed(number))
    assert "12.5" in text
    assert (tmp_path / f"table{number}.md").read_text() == text + "\n"
    with open(tmp_path / f"table{number}.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(paper.cells(number))
    assert all(float(row["difference"]) == pytest.approx(1) for row in rows if row["paper"])
    written = json.loads((tmp_path / f"table{number}.json").read_text())
    assert [cell["ours"] for cell in written["cells"]] == [float(row["ours"]) for row in rows]
    assert written["cells"][0]["zero gradients"] == 12.5
    assert (tmp_path / f"table{number}.png").read_bytes().startswith(b"\x89PNG")


def test_a_number_of_no_images_is_none(tmp_path):
    text = tables.run(11, Parrot(SM_None=float("nan")), ["mnist"], tmp_path)
    assert "none (1.393)" in text
    assert "NaN" not in (tmp_path / "table11.json").read_text()


def test_a_table_of_one_data_set(tmp_path):
    text = tables.run(1, Parrot(), ["mnist"], tmp_path)
    assert "MNIST" in text
    assert "CIFAR" not in text
    with pytest.raises(ValueError, match="table 12 has nothing on mnist"):
        tables.run(12, Parrot(), ["mnist"], tmp_path)


def test_a_table_of_some_methods(tmp_path):
    text = tables.run(8, Parrot(), ["cifar10"], tmp_path, ["SM", "CCN"])
    cells = json.loads((tmp_path / "table8.json").read_text())["cells"]
    crafted = [cell for cell in cells if cell["attack"] != "minimum"]
    assert [(cell["method"], cell["source"]) for cell in crafted] == [
        ("SM", "SM"), ("SM", "CCN"), ("CCN", "SM"), ("CCN", "CCN")]  # fmt: skip
    assert "LS" not in text
    with pytest.raises(ValueError, match="table 9 has nothing on mnist by LS"):
        tables.run(9, Parrot(), ["mnist"], tmp_path, ["LS"])


def grid_rows(text, name):
    """Cells of the rows of this name."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    return [cells for first, *cells in filter(None, rows) if first == name]


def test_transfer_is_read_both_ways_and_masked_rows_are_flagged(tmp_path):
    text = tables.run(7, Parrot(SM_SM=50, SM_CCN=40), ["mnist"], tmp_path)
    assert "rows crafted on and columns tested on" in text
    as_printed, _minimum, transposed = grid_rows(text, "CCN")
    assert as_printed[0] == "65.2 (64.15, +1.0)"  # tested on CCN, crafted on SM
    assert transposed[0] == "40.0 (64.15, -24.2)"  # crafted on CCN, tested on SM, beside what is printed there
    assert grid_rows(text, "zero gradients, %") == [["12.5"] * 6]  # a column has one network's
    (line,) = [line for line in text.splitlines() if line.startswith("SM: masked?")]
    assert "crafted on CCN" in line
    assert "40.0" in line


def entry(attack, held, **changes):
    """A cell of table 1 and the images that held."""
    cell = dataclasses.replace(printed(1, dataset="mnist", row="CCN", epsilon=0.3)[0], attack=attack, **changes)
    return Entry(cell, Measured(100 * sum(held.values()) / len(held), len(held), {}, held))


def test_the_minimum_is_over_the_table_s_own_attacks_too_image_by_image():
    minimum = entry("minimum", {0: True, 1: True, 2: False, 3: True})
    fgsm = entry("fgsm", dict.fromkeys(range(8), True) | {1: False})
    pgd = entry("pgd", {0: False, 1: True, 2: True, 3: True})
    elsewhere = entry("pgd", dict.fromkeys(range(4), False), epsilon=0.2)
    *_, (cell, found) = lowered([fgsm, pgd, elsewhere, minimum])
    assert (cell, found.value, found.images) == (minimum.cell, 25, 4)
    assert found.held == {0: False, 1: False, 2: False, 3: True}
    *_, (_, alone) = lowered([entry("substitute", {9: False}), minimum])  # no image in common
    assert alone == minimum.measured


def test_a_weaker_attack_that_does_more_harm_is_flagged_on_the_images_that_both_saw():
    pgd = entry("pgd", {0: True, 1: False})
    weak, fair = entry("fgsm", {0: False, 1: False, 2: True, 3: True}), entry("fgsm", {0: True, 1: True, 2: False})
    (line,) = flags([weak, pgd])
    assert line == "CCN, ε = 0.3: masked? FGSM leaves 0 %, PGD, which is stronger, 50 %"
    assert flags([fair, pgd]) == flags([pgd, entry("pgd", {0: False})]) == []
    assert flags([weak, entry("pgd", {0: True, 1: False}, epsilon=0.2)]) == []
    (line,) = flags([entry("transfer", {0: False}, source="SM"), entry("fgsm", {0: True})])
    assert "SM's FGSM leaves 0 %, FGSM, which is stronger, 100 %" in line


def test_tables_show_the_minimum_and_the_flags(tmp_path):
    class Weak(Parrot):
        def measure(self, cell):
            held = {index: index >= {"fgsm": 3, "pgd": 1, "minimum": 2}.get(cell.attack, 0) for index in range(10)}
            return Measured(10.0 * sum(held.values()), 10, {}, held)

    text = tables.run(1, Weak(), ["mnist"], tmp_path)
    assert "minimum ε = 0.3" in text
    assert grid_rows(text, "CCN")[1] == ["90.0"] * 4 + ["70.0"] * 4 + ["0.0"]  # PGD's, and the minimum with FGSM
    assert text.count("- CCN, ε = ") == 4
    assert "minimum" in tables.run(7, Weak(), ["mnist"], tmp_path)
