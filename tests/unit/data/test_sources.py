"""What -d may name, and every way in which local data can be wrong."""

import gzip
import json
import os

import pytest
import zstandard
from corpora import write_jsonl, write_parquet
from loading import open_text

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats import compressed, lines
from llama_dyt.data.formats.file_source import place_of
from llama_dyt.data.formats.format import readers
from llama_dyt.data.formats.matching import match_files
from llama_dyt.data.opening import check_data

TEXTS = [f"document {i} ünï 漢字 \n\t" + "x" * i for i in range(10)]


def read(dataset, position=None, **arguments):
    return [(values[0], after) for values, after in open_text(dataset, **arguments).iterate(position)]


def texts_of(dataset, **arguments):
    return [text for text, _ in read(dataset, **arguments)]


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.jsonl.zst", "a.json.gz", "a.json.zst", "a.ndjson"]
)
def test_every_json_lines_format_gives_the_same_texts(tmp_path, name):
    assert texts_of(str(write_jsonl(tmp_path / name, TEXTS))) == TEXTS


def test_parquet_gives_the_same_texts(tmp_path):
    assert texts_of(str(write_parquet(tmp_path / "a.parquet", TEXTS))) == TEXTS


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_every_position_goes_on_with_the_next_record(tmp_path, name):
    write = write_parquet if name.endswith("parquet") else write_jsonl
    write(tmp_path / name, TEXTS)
    write_jsonl(tmp_path / "b.jsonl", ["last"])
    records = read(str(tmp_path))
    for i, (_, after) in enumerate(records):
        rest = read(str(tmp_path), json.loads(json.dumps(after)))
        assert rest == records[i + 1 :]


def test_concatenated_gzip_and_zstd_members_are_read_through(tmp_path):
    parts = [json.dumps({"text": text}).encode() + b"\n" for text in TEXTS]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(gzip.compress(part) for part in parts))
    (tmp_path / "b.jsonl.zst").write_bytes(b"".join(zstandard.compress(part) for part in parts))
    assert texts_of(str(tmp_path)) == TEXTS * 2


def test_folder_is_read_in_sorted_order_with_subfolders_and_without_json_and_hidden_files(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", ["b"])
    write_jsonl(tmp_path / "a" / "z.jsonl.gz", ["az"])
    write_jsonl(tmp_path / "c.parquet.jsonl", ["c"])
    (tmp_path / "tokenizer.json").write_text("{}")
    write_jsonl(tmp_path / ".cache" / "x.jsonl", ["hidden"])
    assert texts_of(str(tmp_path)) == ["az", "b", "c"]


def test_glob_is_read_in_sorted_order(tmp_path):
    for name in "cab":
        write_jsonl(tmp_path / f"{name}.jsonl", [name])
    assert texts_of(str(tmp_path / "[ab].jsonl")) == ["a", "b"]


def test_last_line_needs_no_newline_and_blank_lines_are_passed_over(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\n{"text": "one"}\r\n  \n{"text": "two"}')
    assert texts_of(str(tmp_path / "a.jsonl")) == ["one", "two"]


BAD_LINES = {
    b'{"text": "cut o': "line 2: is not valid JSON",
    b'{"meta": {}}': "line 2: has no field 'text'",
    b'{"text": 3}': "line 2: field 'text' is int, not a string",
    b'{"text": null}': "line 2: has no field 'text'",
    b'["text"]': "line 2: is a JSON list, not an object",
    b'{"text": "\xff"}': "line 2: is not UTF-8",
    b'{"text": "\\ud800"}': "line 2: field 'text' holds half of a surrogate pair",
    b"[" * 100_000: "line 2: is not usable JSON",
}


@pytest.mark.parametrize("bad", BAD_LINES, ids=range(len(BAD_LINES)))
def test_bad_line_is_an_error_with_file_line_and_remedy_or_is_counted(tmp_path, bad):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n' + bad + b'\n{"text": "two"}\n')
    with pytest.raises(DataError) as caught:
        texts_of(str(path))
    message = str(caught.value)
    assert f"{path}, {BAD_LINES[bad]}" in message
    assert "--skip_bad_lines" in message
    assert "\n" not in message
    source = open_text(str(path), skip_bad_lines=True)
    assert [values[0] for values, _ in source.iterate()] == ["one", "two"]
    assert source.bad_lines == 1


def test_count_of_bad_lines_travels_with_the_position(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'x\n{"text": "one"}\nx\n{"text": "two"}\nx\n')
    source = open_text(str(path), skip_bad_lines=True)
    (_, first), (_, _) = source.iterate()
    assert source.bad_lines == 3
    resumed = open_text(str(path), skip_bad_lines=True)
    assert [values[0] for values, _ in resumed.iterate(first)] == ["two"]
    assert resumed.bad_lines == 3


def test_line_number_in_an_error_is_right_after_resuming(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": "two"}\nx\n')
    source = open_text(str(path))
    first = next(source.iterate())[1]
    with pytest.raises(DataError, match="line 3"):
        list(open_text(str(path)).iterate(first))


def test_parquet_null_is_a_bad_row_and_a_missing_column_an_error(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ["one", None, "two"])
    with pytest.raises(DataError, match="row 1: has no field 'text'"):
        texts_of(str(path))
    assert texts_of(str(path), skip_bad_lines=True) == ["one", "two"]
    with pytest.raises(DataError, match="has no column 'text' .it has content, meta"):
        texts_of(str(write_parquet(tmp_path / "b.parquet", ["one"], column="content")))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_position_in_a_later_frame_is_gone_on_from_without_reading_the_earlier(tmp_path, monkeypatch, suffix):
    pack = gzip.compress if suffix == ".gz" else zstandard.compress
    written = [json.dumps({"text": f"document {i}"}).encode() + b"\n" for i in range(40)]
    frames = [pack(b"".join(written[first : first + 10])) for first in range(0, 40, 10)]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(frames[0] + frames[1] + b"\0" * 700 + frames[2] + frames[3] + b"\0" * 70_000)
    monkeypatch.setattr(compressed, "_READ_PACKED_BYTES", 64)
    monkeypatch.setattr(lines, "_BLOCK_BYTES", 60)
    source = open_text(str(path))
    walked = list(source.iterate())
    assert [values[0] for values, _ in walked] == [f"document {i}" for i in range(40)]
    placed = list(source.line_blocks())
    for number, (file, place, _) in enumerate(placed):
        rest = b"".join(block for _, _, block in source.line_blocks(place_of(file, place, 0)))
        assert rest == b"".join(block for _, _, block in placed[number:])
    path.write_bytes(b"x" * len(frames[0] + frames[1]) + path.read_bytes()[len(frames[0] + frames[1]) :])
    for done in range(20, 40):
        position = json.loads(json.dumps(walked[done][1]))
        assert list(source.iterate(position)) == walked[done + 1 :]
        blocks = b"".join(block for _, _, block in source.line_blocks(position))
        assert blocks == b"".join(written[done + 1 :])


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("kept", [0.5, 0.95])
def test_truncated_compressed_file_is_an_error(tmp_path, name, kept):
    path = write_jsonl(tmp_path / name, [os.urandom(2000).hex() for _ in range(20)])
    packed = path.read_bytes()
    path.write_bytes(packed[: int(len(packed) * kept)])
    with pytest.raises(DataError, match=r"line \d+: the compressed file is cut off"):
        texts_of(str(path), skip_bad_lines=True)


@pytest.mark.parametrize(
    "name, reason",
    [("a.jsonl.gz", "compressed file"), ("a.jsonl.zst", "compressed file"), ("a.parquet", "parquet file")],
)
def test_file_of_another_format_than_its_name_is_an_error(tmp_path, name, reason):
    (tmp_path / name).write_bytes(b'{"text": "plain"}\n' * 50)
    with pytest.raises(DataError, match=f"not a valid {reason}") as caught:
        texts_of(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_truncated_parquet_is_an_error(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", TEXTS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a valid parquet file"):
        texts_of(str(path))


def test_check_finds_missing_and_empty_datasets(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "void.jsonl").write_bytes(b"")
    (tmp_path / "blank.jsonl").write_bytes(b"\n\n")
    (tmp_path / "text.txt").write_text("hello")
    expected = {
        str(tmp_path / "nowhere"): "no such file or folder",
        str(tmp_path / "nowhere.jsonl"): "no such file or folder",
        str(tmp_path / "empty"): "holds no .jsonl",
        str(tmp_path / "*.parquet"): "file matches",
        str(tmp_path / "void.jsonl"): "all empty",
        str(tmp_path / "blank.jsonl"): "no usable record",
        str(tmp_path / "text.txt"): "not a format",
    }
    for dataset, reason in expected.items():
        problems = check_data(dataset)
        assert len(problems) == 1, dataset
        assert reason in problems[0]
        assert dataset in problems[0]
        assert "\n" not in problems[0]


def test_check_reads_only_the_beginning(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ["good"])
    (tmp_path / "b.jsonl").write_text("broken")
    assert check_data(str(tmp_path)) == []
    assert check_data("sample") == []
    with pytest.raises(DataError):
        texts_of(str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_file_without_right_to_read_is_an_error(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["x"])
    path.chmod(0)
    assert "no right to read" in check_data(str(path))[0]


def test_dangling_link_and_vanished_file_are_errors(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    source = open_text(str(path))
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        list(source.iterate())


def test_a_file_beside_its_packed_copy_is_refused(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ["x"])
    write_jsonl(tmp_path / "a.jsonl.gz", ["x"])
    with pytest.raises(DataError, match="the same data twice"):
        match_files(str(tmp_path), readers())


def test_fingerprint_changes_with_the_files_but_not_with_their_place(tmp_path):
    for folder in ("one", "two"):
        write_jsonl(tmp_path / folder / "a.jsonl", ["x"])
    one, two = (open_text(str(tmp_path / folder)).fingerprint for folder in ("one", "two"))
    assert one == two
    write_jsonl(tmp_path / "two" / "b.jsonl", ["x"])
    assert open_text(str(tmp_path / "two")).fingerprint != one
