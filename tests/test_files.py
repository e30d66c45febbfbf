import pytest

from ccn_kernels import files


def test_json_round_trip_makes_folders(tmp_path):
    path = tmp_path / "a" / "b.json"
    files.write_json(path, {"x": [1, 2.5]})
    assert files.read_json(path) == {"x": [1, 2.5]}
    assert [p.name for p in path.parent.iterdir()] == ["b.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "state"
    files.write(path, lambda temporary: temporary.write_text("old"))

    def fail(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_is_none_and_damaged_is_named(tmp_path):
    assert files.read_json(tmp_path / "none.json") is None
    (tmp_path / "bad.json").write_text('{"x": ')
    with pytest.raises(ValueError, match=r"bad\.json is damaged"):
        files.read_json(tmp_path / "bad.json")
