"""The table of docs/behaviour.md: what a session of these tests saw. ``make behaviour`` writes it."""

import sys
from pathlib import Path
from typing import NamedTuple

import pytest

HERE = Path(__file__).parent
LAST = "test_behaviour_table.py"  # compares what was seen with what is documented
DOCUMENT = HERE.parents[1] / "docs" / "behaviour.md"
HEAD = """# What works with `nn.Conv2d`, and with `CompactConv2d`

Made by `make behaviour` from the tests that are named, all of which passed: each row is what its test shows.
"""


class Row(NamedTuple):
    section: str
    feature: str
    conv: str
    ours: str
    test: str

    def __str__(self):
        return f"| {self.feature} | {self.conv} | {self.ours} | `{self.test}` |"


class Table:
    """Rows in the order in which their tests ran, without those of a test that failed."""

    def __init__(self):
        self.rows, self.failed = {}, set()

    def add(self, row, passed):
        self.rows[row] = None
        if not passed:
            self.failed.add(row)

    def __str__(self):
        sections = {}
        for row in self.rows:
            if row not in self.failed:
                sections.setdefault(row.section, []).append(row)
        head = "| feature | `nn.Conv2d` | `CompactConv2d` | shown by |\n|---|---|---|---|\n"
        parts = [f"\n## {name}\n\n{head}" + "\n".join(map(str, rows)) + "\n" for name, rows in sections.items()]
        return HEAD + "".join(parts)


SEEN = pytest.StashKey[Table]()


def row_of(item, mark):
    section, feature = mark.args
    conv = mark.kwargs.get("conv", "works")
    assert conv != "works" or "kind" in item.fixturenames, f"{item.name} does not run with nn.Conv2d"
    name = f"{item.path.relative_to(HERE)}::{item.originalname}"
    return Row(section, feature, conv, mark.kwargs.get("ours", "works"), name)


class Keeper:
    """A plugin that keeps the session's table."""

    def pytest_sessionfinish(self, session):
        self.table = session.stash.get(SEEN, Table())


def main():
    keeper = Keeper()
    status = pytest.main([str(HERE), f"--ignore={HERE / LAST}"], plugins=[keeper])
    if status == 0:
        DOCUMENT.write_text(str(keeper.table))
    return int(status)


if __name__ == "__main__":
    from behaviour import main  # the module that the tests import, with their key

    sys.exit(main())
