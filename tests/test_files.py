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


def test_files_have_the_mode_that_the_umask_leaves(tmp_path):
    """Some libraries write for their user alone, and others of a group could not read a checkpoint."""
    usual = tmp_path / "usual"
    usual.touch()

    def save(temporary):
        temporary.unlink()
        temporary.touch(0o600)

    files.write(tmp_path / "weights", save)
    assert (tmp_path / "weights").stat().st_mode == usual.stat().st_mode


def test_a_folder_that_cannot_be_written_to_is_named_at_once(tmp_path):
    files.check_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"cannot write .*file"):
            files.check_writable(path)
