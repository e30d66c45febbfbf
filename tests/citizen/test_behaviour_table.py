"""docs/behaviour.md says what the tests of this folder saw; it comes last."""

import re

import behaviour


def test_the_documented_behaviour_is_what_was_seen(request):
    seen = request.session.stash.get(behaviour.SEEN, behaviour.Table()).rows
    documented = [line for line in behaviour.DOCUMENT.read_text().splitlines() if "::" in line]
    assert [row for row in map(str, seen) if row not in documented] == [], "run make behaviour"
    ran = {row.test for row in seen}
    for line in documented:
        file, test = re.search(r"`(\S+)::(\w+)`", line).groups()
        assert f"def {test}(" in (behaviour.HERE / file).read_text(), f"{test} is gone: run make behaviour"
        if f"{file}::{test}" in ran:
            assert line in map(str, seen), f"{test} shows something else: run make behaviour"
