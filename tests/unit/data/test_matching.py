"""What a dataset's name means is told: files read and passed over, links, names, and what is no text at all."""

import json
import os
import struct

import pytest
from corpora import write_jsonl, write_parquet
from loading import open_text

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.format import readers
from llama_dyt.data.formats.matching import match_files
from llama_dyt.data.formats.sources import ReadOptions
from llama_dyt.data.opening import check_data, files_in_words


def names(dataset):
    return [file.name for file in match_files(str(dataset), readers()).files]


def test_what_is_read_and_passed_over_is_told_in_one_line(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ["one"])
    write_jsonl(tmp_path / "sub" / "b.jsonl.gz", ["two"])
    write_jsonl(tmp_path / ".cache" / "c.jsonl", ["hidden"])
    (tmp_path / "README.md").write_text("# words")
    (tmp_path / "tokenizer.json").write_text("{}")
    (line,) = files_in_words(str(tmp_path), ReadOptions())
    size = sum((tmp_path / name).stat().st_size for name in ("a.jsonl", "sub/b.jsonl.gz"))
    assert line.startswith(f"{tmp_path}: read 2 files of {size} bytes, passed over 3: ")
    for told in (".cache/ (hidden)", "README.md (not .jsonl", "tokenizer.json (a .json, read only where it is named)"):
        assert told in line
    (line,) = files_in_words(str(tmp_path / "*"), ReadOptions())
    assert "read 1 file of" in line or "read 2 files of" in line  # a glob says what is read, .json included
    assert f"{tmp_path / 'sub'} (a folder)" in line and "README.md (not" in line


def test_linked_folders_are_read_and_no_file_twice(tmp_path):
    write_jsonl(tmp_path / "elsewhere" / "x.jsonl", ["linked"])
    folder = tmp_path / "data"
    write_jsonl(folder / "z.jsonl", ["one"])
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    (folder / "a.jsonl").symlink_to(folder / "z.jsonl")
    os.link(folder / "z.jsonl", folder / "zz.jsonl")
    assert names(folder) == ["link/x.jsonl", "z.jsonl"]
    told = str(match_files(str(folder), readers()))
    assert "loop/ (the same folder as .)" in told
    assert "a.jsonl, zz.jsonl" in told.replace("zz.jsonl, a.jsonl", "a.jsonl, zz.jsonl")
    assert "(the same file as z.jsonl)" in told
    assert names(folder / "*.jsonl") == ["z.jsonl"]


@pytest.mark.parametrize("name", ["a.jsonl", "shard"])
def test_a_link_to_nothing_is_an_error(tmp_path, name):
    write_jsonl(tmp_path / "b.jsonl", ["one"])
    (tmp_path / name).symlink_to(tmp_path / "gone")
    for dataset in (tmp_path, tmp_path / "*", tmp_path / name):
        with pytest.raises(DataError, match=f"{name}: a link to .*gone, which is not there"):
            match_files(str(dataset), readers())


def test_suffixes_count_in_any_case(tmp_path):
    write_jsonl(tmp_path / "a.jsonl.gz", ["a"]).rename(tmp_path / "A.JSONL.GZ")
    write_jsonl(tmp_path / "b.jsonl", ["b"]).rename(tmp_path / "B.JsonL")
    write_parquet(tmp_path / "c.parquet", ["c"]).rename(tmp_path / "C.PARQUET")
    assert [values[0] for values, _ in open_text(str(tmp_path)).iterate()] == ["a", "b", "c"]


def test_names_that_are_not_utf8_work(tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    os.mkdir(folder)
    for name, write in ((b"\xe9.jsonl", write_jsonl), (b"\xff.parquet", write_parquet)):
        made = write(tmp_path / f"a.{os.fsdecode(name).split('.')[-1]}", ["text"])
        os.rename(made, os.path.join(folder, name))
    dataset = os.fsdecode(folder)
    records = list(open_text(dataset).iterate())
    assert [values for values, _ in records] == [("text",)] * 2
    position = json.loads(json.dumps(records[0][1]))
    assert [values for values, _ in open_text(dataset).iterate(position)] == [("text",)]
    (line,) = files_in_words(dataset, ReadOptions())
    assert line.encode().decode() == line and "caf\\udce9" in line


def test_byte_order_marks_are_no_data(tmp_path):
    mark = b"\xef\xbb\xbf"
    path = tmp_path / "a.jsonl"
    path.write_bytes(mark + b'{"text": "one"}\n' + mark + b'{"text": "two"}\n' + mark + b"\n")
    assert [values[0] for values, _ in open_text(str(path)).iterate()] == ["one", "two"]
    path.write_bytes('{"text": "one"}\n'.encode("utf-16"))
    assert "is UTF-16 by its byte-order mark; convert" in check_data(str(path))[0]


FORMS = {
    "array": (b'[\n{"text": "one"},\n{"text": "two"}\n]\n', "the file is one JSON array; write one object a line"),
    "array of one line": (b'[{"text": "one"}, {"text": "two"}]\n', "the file is one JSON array"),
    "wrong field": (
        b'{"id": "1", "content": "a long text"}\n' * 3,
        "its records have id (str), content (str): name the one to read with --text_field, such as "
        "--text_field content",
    ),
    "no text": (b'{"text": ["a"], "n": 3}\n' * 3, "its records have text (list), n (int): name the one to read"),
    "no JSON": (b"once upon a time\nthere was\n", "no line of its beginning is a JSON object"),
}


@pytest.mark.parametrize("name", FORMS)
def test_skipping_lines_is_not_advised_where_the_files_form_is_wrong(tmp_path, name):
    content, told = FORMS[name]
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    (problem,) = check_data(str(path))
    assert told in problem and "skip_bad_lines" not in problem and "\n" not in problem


def test_a_flag_names_the_column(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ["one"], column="content")
    (problem,) = check_data(str(path))
    assert "has no column 'text' (it has content, meta)" in problem
    assert "--text_field content" in problem and "skip_bad" not in problem
    assert check_data(str(path), ReadOptions(("content",))) == []
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"instruction": "q", "output": "a"}\n')
    assert "--prompt_field" in check_data(str(pairs), ReadOptions(("prompt", "completion")))[0]
    assert (
        "--completion_field, such as --completion_field output"
        in (check_data(str(pairs), ReadOptions(("instruction", "completion")))[0])
    )
    assert check_data(str(pairs), ReadOptions(("instruction", "output"))) == []


def things(tmp_path):
    """Paths that hold no text, and what they are said to be."""
    import pyarrow

    schema = pyarrow.schema([("text", pyarrow.string())])
    batch = pyarrow.record_batch([pyarrow.array(["one"])], schema=schema)
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "dataset_info.json").write_text("{}")
    stream = saved / "data-00000-of-00001.arrow"
    with pyarrow.OSFile(str(stream), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(batch)
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    (prepared / "manifest_00000_of_00001.json").write_text("{}")
    (tmp_path / "old.idx").write_bytes(b"TNTIDX\x00\x00" + struct.pack("<QQ", 1, 8))
    (tmp_path / "old.bin").write_bytes(b"\0" * 8)
    return {
        "folder of datasets": (saved, "a dataset as HuggingFace's `save_to_disk` leaves it"),
        "file of datasets": (stream, "an Arrow stream, as HuggingFace's `datasets` keeps its data"),
        "old index": (tmp_path / "old.idx", "Megatron's data in its former format (TNTIDX)"),
        "old tokens": (tmp_path / "old.bin", "Megatron's data in its former format (TNTIDX)"),
        "old pair": (tmp_path / "old", "Megatron's data in its former format (TNTIDX)"),
        "prepared": (prepared, "prepared tokens, which pretrain.py alone reads"),
    }


PLACES = ("folder of datasets", "file of datasets", "old index", "old tokens", "old pair", "prepared")


@pytest.mark.parametrize("thing", PLACES)
def test_what_cannot_serve_is_called_by_what_it_is(tmp_path, thing):
    path, told = things(tmp_path)[thing]
    fine_tuning = ("prompt", "completion")
    for fields in [fine_tuning] if thing == "prepared" else [fine_tuning, ("text",)]:
        (problem,) = check_data(str(path), ReadOptions(fields))
        assert told in problem and str(path) in problem


def test_mistakes_of_a_mixture_are_told_together(tmp_path):
    write_jsonl(tmp_path / "good.jsonl", ["text"])
    (tmp_path / "array.jsonl").write_text('[{"text": "one"}]')
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(
        "sources:\n  one: {path: absent.jsonl}\n  two: {path: array.jsonl, weight: -1}\n  three: {weigth: 2}\n"
        "  four: {path: good.jsonl}\n"
    )
    problems = "\n".join(check_data(str(mixture), num_epochs=2))
    for told in ("absent.jsonl: no such file", "one JSON array", "-1 is not above 0", "weigth", "three: path: missing"):
        assert told in problems
    assert "leave --num_epochs out" in problems and "good" not in problems


def test_a_source_of_a_mixture_names_its_own_field(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["one"])
    write_parquet(tmp_path / "b.parquet", ["two"], column="content")
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text("sources:\n  a: {path: a.jsonl}\n  b: {path: b.parquet, field: content}\n")
    assert check_data(str(mixture)) == []
    assert [line.split(":")[0] for line in files_in_words(str(mixture), ReadOptions())] == ["a", "b"]
    mixture.write_text("sources:\n  a: {path: a.jsonl}\n  b: {path: b.parquet}\n")
    (problem,) = check_data(str(mixture))
    assert "sources: b: " in problem and "--text_field content" in problem
    assert path.exists()
