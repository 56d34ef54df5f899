"""Reading what other programs prepared: Megatron's pairs of files and the DyT authors' Arrow files."""

import json
import struct

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prepared import write_megatron, write_shards

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.arrow import ArrowDocuments, is_arrow
from llama_dyt.data.formats.format import format_of
from llama_dyt.data.formats.megatron import MegatronTokens
from llama_dyt.data.formats.sources import ReadOptions
from llama_dyt.data.opening import open_data

DOCUMENTS = [[[5, 6, 0]], [[7, 8], [9, 0]], [[1, 2, 3, 4, 0]]]
"""Documents of sequences of tokens, as Megatron has them; 0 is the end of a document."""


@pytest.mark.parametrize(("dtype", "code"), [("<u2", 8), ("<i4", 4), ("<i2", 3), ("<i8", 5), ("u1", 1)])
@pytest.mark.parametrize("named", ["", ".bin", ".idx", "folder"])
def test_megatron_tokens_and_documents(tmp_path, dtype, code, named):
    write_megatron(tmp_path / "text_document", DOCUMENTS, dtype, code)
    array = open_data(tmp_path if named == "folder" else tmp_path / f"text_document{named}")
    assert array.tokens(0, array.num_tokens).tolist() == [5, 6, 0, 7, 8, 9, 0, 1, 2, 3, 4, 0]
    assert array.tokens(2, 5).tolist() == [0, 7, 8] and array.tokens(2, 5).dtype == np.int32
    assert array.num_documents == 3
    assert array.document_starts(0, 4).tolist() == [0, 3, 7, 12]
    assert array.document_starts(1, 3).tolist() == [3, 7]
    assert array.tokenizer is None and array.vocab_size is None


@given(st.lists(st.lists(st.lists(st.integers(0, 65535), min_size=1, max_size=5), min_size=1, max_size=3), min_size=1))
def test_any_megatron_file(tmp_path_factory, documents):
    array = MegatronTokens(write_megatron(tmp_path_factory.mktemp("m") / "a", documents))
    flat = [[token for sequence in document for token in sequence] for document in documents]
    starts = array.document_starts(0, array.num_documents + 1).tolist()
    assert [array.tokens(a, b).tolist() for a, b in zip(starts[:-1], starts[1:])] == flat


def test_documents_without_eos_are_told(tmp_path):
    array = MegatronTokens(write_megatron(tmp_path / "a", [*DOCUMENTS, [[5, 6]]]))
    assert "1 of its first 4 documents do not end with EOS (0)" in array.warning(0)
    assert MegatronTokens(write_megatron(tmp_path / "b", DOCUMENTS)).warning(0) is None


def test_the_fingerprint_is_of_the_content(tmp_path):
    one = MegatronTokens(write_megatron(tmp_path / "a", DOCUMENTS)).fingerprint
    other = [*DOCUMENTS[:2], [[1, 2, 3, 5, 0]]]
    assert MegatronTokens(write_megatron(tmp_path / "b", DOCUMENTS)).fingerprint == one
    assert MegatronTokens(write_megatron(tmp_path / "c", other)).fingerprint != one


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        (".bin", lambda b: b[:-2], "has 22 bytes, but its index tells of 12 tokens, which are 24 bytes"),
        (".bin", None, "a.bin: cannot be read"),
        (".idx", lambda b: b[:-8], "it is cut off or empty"),
        (".idx", lambda b: b[:20], "is cut off"),
        (".idx", lambda b: b[:9] + b"\2" + b[10:], "version 2 of the format"),
        (".idx", lambda b: b[:17] + b"\7" + b[18:], "type 7, which are no tokens"),
        (".idx", lambda b: b[:-8] + struct.pack("<q", 9), "do not cover its sequences"),
    ],
)
def test_a_damaged_megatron_file_is_refused(tmp_path, suffix, change, message):
    file = write_megatron(tmp_path / "a", DOCUMENTS).with_suffix(suffix)
    content = file.read_bytes()
    file.unlink() if change is None else file.write_bytes(change(content))
    with pytest.raises(DataError, match=message):
        open_data(tmp_path / "a")


def test_a_negative_number_is_no_token(tmp_path):
    array = MegatronTokens(write_megatron(tmp_path / "a", [[[5], [1, 2]]], "<i4", 4))
    with open(tmp_path / "a.bin", "r+b") as file:
        file.write(struct.pack("<i", -1))
    with pytest.raises(DataError, match="no token between 0 and 2"):
        array.tokens(0, 2)


def test_what_a_path_holds_is_told_apart(tmp_path):
    write_shards(tmp_path / "ours", [[[1, 2]]])
    kinds = {name: format_of(str(tmp_path / name)).name for name in ("ours", "", "nothing", "a.jsonl")}
    assert kinds == {"ours": "shards", "": "folder", "nothing": "folder", "a.jsonl": "jsonl"}
    assert format_of("owner/name").name == "hub" and format_of("sample").name == "sample"
    assert format_of(str(tmp_path / "ours"), tokens=False).name == "folder"
    write_megatron(tmp_path / "a", DOCUMENTS)
    with pytest.raises(DataError, match="no split 'validation'"):
        open_data(tmp_path / "a", ReadOptions(split="validation"))
    write_megatron(tmp_path / "b", DOCUMENTS)
    with pytest.raises(DataError, match="holds 2 .idx files; name one"):
        open_data(tmp_path)
    (tmp_path / "begun" / ".journal_00000_of_00001").mkdir(parents=True)
    (tmp_path / "begun" / ".journal_00000_of_00001" / "settings.json").write_text("{}")
    with pytest.raises(DataError, match="prepared in part"):
        open_data(tmp_path / "begun")


def write_arrow_file(file, documents, field="input_ids", type=None):
    """As the authors' program writes it: a record batch a document."""
    schema = pyarrow.schema([(field, type or pyarrow.uint32())])
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_file(sink, schema) as writer:
        for document in documents:
            writer.write_batch(pyarrow.record_batch([pyarrow.array(document, schema.field(0).type)], schema=schema))
    return file


@pytest.fixture
def arrow(tmp_path):
    documents = [[number, *range(number % 4)] for number in range(30)]
    for rank, part in ((10, documents[20:]), (2, documents[10:20]), (0, documents[:10])):
        write_arrow_file(tmp_path / f"rank_{rank}.arrow", [*part, []])
    return tmp_path, documents


def test_arrow_files_are_read_in_the_order_of_their_numbers(arrow):
    folder, documents = arrow
    source = ArrowDocuments(folder)
    found = list(source.documents())
    assert [ids.tolist() for ids, _ in found] == documents
    assert all(ids.dtype == np.int32 for ids, _ in found)
    assert (source.is_local, source.bad_lines, source.problems()) == (True, 0, [])


def test_every_arrow_position_goes_on_with_the_next_document(arrow):
    folder, documents = arrow
    for number, (_, after) in enumerate(ArrowDocuments(folder).documents()):
        rest = ArrowDocuments(folder).documents(json.loads(json.dumps(after)))
        assert [ids.tolist() for ids, _ in rest] == documents[number + 1 :]


def test_arrow_maps_are_made_anew_without_losing_a_document(arrow, monkeypatch):
    monkeypatch.setattr("llama_dyt.data.formats.arrow._TOKENS_A_MAP", 5)
    assert [ids.tolist() for ids, _ in ArrowDocuments(arrow[0]).documents()] == arrow[1]


def test_what_is_arrow(arrow, tmp_path_factory):
    folder, _ = arrow
    assert is_arrow(folder) and is_arrow(folder / "rank_2.arrow")
    assert not is_arrow(tmp_path_factory.mktemp("empty")) and not is_arrow("owner/name")
    with pytest.raises(DataError, match="holds no rank_N.arrow file"):
        ArrowDocuments(tmp_path_factory.mktemp("empty"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: f.write_bytes(f.read_bytes()[:-40]), "not a whole Arrow file"),
        (lambda f: f.write_bytes(b""), "not a whole Arrow file"),
        (lambda f: write_arrow_file(f, [[1]], field="tokens"), r"has no field 'input_ids' \(it has tokens\)"),
        (lambda f: write_arrow_file(f, [["a"]], type=pyarrow.string()), "is string, not a whole number"),
        (lambda f: write_arrow_file(f, [[1], [2**31]]), "document 1: holds what is no token"),
        (lambda f: write_arrow_file(f, [[1], [2, None]]), "document 1: holds what is no token"),
    ],
)
def test_a_damaged_arrow_file_is_named(arrow, make, message):
    folder, _ = arrow
    make(folder / "rank_2.arrow")
    with pytest.raises(DataError, match=message) as error:
        list(ArrowDocuments(folder).documents())
    assert "rank_2.arrow" in str(error.value)


def test_an_arrow_position_of_a_file_that_is_gone(arrow):
    folder, _ = arrow
    *_, (_, after) = ArrowDocuments(folder).documents()
    (folder / "rank_10.arrow").unlink()
    with pytest.raises(DataError, match="rank_10.arrow, where the run stopped reading, is gone"):
        next(ArrowDocuments(folder).documents(after))
