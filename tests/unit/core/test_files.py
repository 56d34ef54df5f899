"""What others read is there whole or not at all: files and folders made aside."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_dyt.core import files


def test_a_file_that_fails_halfway_leaves_the_older_one_and_nothing_beside_it(tmp_path):
    files.write_json(tmp_path / "status.json", {"step": 1})
    with pytest.raises(ZeroDivisionError), files.written_whole(tmp_path / "status.json") as aside:
        aside.write_text("half")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
    assert (tmp_path / "status.json").read_text() == '{\n "step": 1\n}\n'


def test_a_folder_is_seen_when_all_its_files_are_there(tmp_path):
    with files.made_whole(tmp_path / "made") as aside:
        (aside / "inner").mkdir(parents=True)
        (aside / "inner" / "file").write_text("all of it")
        assert not (tmp_path / "made").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert (tmp_path / "made" / "inner" / "file").read_text() == "all of it"


def test_a_folder_that_fails_halfway_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), files.made_whole(tmp_path / "made") as aside:
        aside.mkdir()
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_the_folder_that_another_process_made_first_stays(tmp_path):
    with files.made_whole(tmp_path / "made") as aside:
        aside.mkdir()
        (aside / "file").write_text("second")
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "file").write_text("first")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert (tmp_path / "made" / "file").read_text() == "first"


def test_whether_a_folder_can_be_written_is_told_without_a_trace(tmp_path):
    assert files.why_not_writable(tmp_path / "not" / "there") is None
    (tmp_path / "file").write_text("")
    assert files.why_not_writable(tmp_path / "file") == "it is a file"
    assert files.why_not_writable(tmp_path / "file" / "below") == f"{tmp_path / 'file'} is a file"
    for address in ("s3://bucket/folder", Path("s3://bucket/folder"), "hf://some/where"):
        assert "is an address" in files.why_not_writable(address)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
