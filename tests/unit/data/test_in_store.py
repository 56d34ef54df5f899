"""Data in a store: the names that an address means, the same records and places as on a disk, and what cannot be."""

import gzip
import json

import pytest
import zstandard
from corpora import write_jsonl, write_parquet
from loading import token_batches
from prepared import write_shards

from llama_dyt.core import store_copies
from llama_dyt.core.errors import DataError
from llama_dyt.core.stores.s3 import STORE
from llama_dyt.data.formats.format import format_of
from llama_dyt.data.formats.sources import ReadOptions
from llama_dyt.data.opening import check_data, open_data, open_text
from llama_dyt.data.order.mixture_file import read_mixture
from llama_dyt.data.preparing.parts import bad_records, cut_parts, read_part
from tests.s3_server import BUCKET, Fault, of_both, use

pytest.importorskip("boto3", reason="needs boto3")
pytest.importorskip("moto", reason="needs moto[s3]")
TEXTS = [f"document {number} " + "word " * (number % 9) for number in range(300)]


@pytest.fixture
def s3(s3_server, monkeypatch, tmp_path):
    return use(s3_server, monkeypatch, tmp_path / "cache")


@pytest.fixture
def text(s3, tmp_path):
    """Files of three formats, the same on the disk and in the store; returns the folder and its address."""
    folder = tmp_path / "text"
    write_jsonl(folder / "a.jsonl", TEXTS[:100])
    packed = write_jsonl(tmp_path / "b.jsonl", TEXTS[100:200]).read_bytes()
    frames = [zstandard.compress(packed[begin : begin + 2000]) for begin in range(0, len(packed), 2000)]
    (folder / "below").mkdir()
    (folder / "below" / "b.jsonl.zst").write_bytes(b"".join(frames))
    write_parquet(folder / "c.parquet", TEXTS[200:])
    (folder / "notes.md").write_text("no data")
    return folder, put(folder, "text")


def put(folder, name):
    for file in folder.rglob("*"):
        if file.is_file():
            STORE.put(f"s3://{BUCKET}/{name}/{file.relative_to(folder).as_posix()}", file)
    return f"s3://{BUCKET}/{name}"


def records(dataset, position=None):
    return list(open_text(dataset, ReadOptions()).iterate(position))


@of_both
def test_records_and_places_are_those_of_the_same_files_on_a_disk(text):
    folder, address = text
    there, here = records(address), records(str(folder))
    assert there == here and len(there) == len(TEXTS)
    for number in (0, 99, 100, 150, 199, 200, 299):
        position = json.loads(json.dumps(there[number][1]))
        assert records(address, position) == here[number + 1 :]
    found = open_data(address)
    assert "3 files" in found.in_words() and "notes.md" in found.in_words() and not found.is_local
    assert found.fingerprint == open_data(str(folder)).fingerprint  # a run may go on from a copy elsewhere


MEANT = {
    "*.jsonl": ["a.jsonl"],
    "*/*.jsonl.zst": ["below/b.jsonl.zst"],
    "**/*.jsonl*": ["a.jsonl", "below/b.jsonl.zst"],
    "[ac].*": ["a.jsonl", "c.parquet"],
    "below": ["b.jsonl.zst"],
    "c.parquet": ["c.parquet"],
}


@of_both
def test_what_an_address_means(text):
    assert {name: [file.name for file in open_data(f"{text[1]}/{name}").files] for name in MEANT} == MEANT


def test_steps_are_the_same_and_gone_on_with_from_a_file_in_the_middle(text, tokenizer):
    folder, address = text
    steps, other = (list(token_batches(str(name), tokenizer, 32, 4)) for name in (folder, address))
    assert [step.position["tokens"] for step in steps] == [step.position["tokens"] for step in other]
    half = len(other) // 2
    rest = list(token_batches(address, tokenizer, 32, 4, state=json.loads(json.dumps(other[half].position))))
    for step, again in zip(steps[half + 1 :], rest, strict=True):
        assert step.micro_batches[0]["input_ids"].equal(again.micro_batches[0]["input_ids"])


def test_a_file_is_fetched_once_a_machine_and_copies_keep_their_bound(text, s3, monkeypatch):
    s3.faults += [Fault("GET /[^?]*a.jsonl", "slow_down", times=1), Fault("GET /[^?]*parquet", "cut", times=1)]
    records(text[1])
    fetched = [path for method, path, *_ in s3.asked if method == "GET" and "list-type" not in path]
    assert len(fetched) == 4 and s3.made == ["slow_down", "cut"]  # three files; one that was cut is not counted
    s3.asked.clear()
    records(text[1])
    assert not [path for method, path, *_ in s3.asked if method == "GET" and "list-type" not in path]
    monkeypatch.setenv(store_copies.BOUND_VARIABLE, "0.000000001")
    STORE.put(f"{text[1]}/a.jsonl", text[0] / "a.jsonl")
    STORE.delete(f"{text[1]}/a.jsonl")
    write_jsonl(text[0] / "d.jsonl", TEXTS[:3])
    STORE.put(f"{text[1]}/d.jsonl", text[0] / "d.jsonl")
    records(f"{text[1]}/d.jsonl")
    assert [home.name for home in store_copies.folder().glob("s3-file-*") for home in home.glob("[a-z]*")] == [
        "d.jsonl"
    ]


def test_what_cannot_be_read_names_the_address_and_not_the_copy(text, s3, tmp_path, monkeypatch):
    address = text[1]
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n{"text": 5}\n')
    STORE.put(f"{address}/bad.jsonl", tmp_path / "bad.jsonl")
    with pytest.raises(DataError) as caught:
        records(f"{address}/bad.jsonl")
    assert str(caught.value).startswith(f"{address}/bad.jsonl, line 2") and "cache" not in str(caught.value)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "good"}\n' * 99)[:-20])
    STORE.put(f"{address}/cut.jsonl.gz", tmp_path / "cut.jsonl.gz")
    with pytest.raises(DataError, match=f"^{address}/cut.jsonl.gz, line [0-9]+: the compressed file is cut off"):
        records(f"{address}/cut.jsonl.gz")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    STORE._clients.clear()
    for dataset, expected in (
        (f"{address}/*.csv", "nothing is there; check the address|no .* file there"),
        (f"s3://{BUCKET}/nowhere", "nothing is there; check the address"),
        ("s3://no-bucket-of-this-name/x.jsonl", "there is no bucket 'no-bucket-of-this-name'"),
        ("s3://", "is no address; give s3://BUCKET/FOLDER"),
        ("s4://bucket/x.jsonl", "unknown store 's4' .known: file, s3"),
    ):
        (problem,) = check_data(dataset)
        assert "\n" not in problem
        with pytest.raises(DataError, match=expected):
            open_data(dataset)
    s3.faults.append(Fault("", "expired"))
    (problem,) = check_data(address)
    assert "the credentials have expired" in problem and "\n" not in problem


def test_a_mixture_names_addresses(text, tmp_path):
    (tmp_path / "mixture.yaml").write_text(f"sources:\n  one: {text[1]}/a.jsonl\n  two: {text[1]}/c.parquet\n")
    assert [source.path for source in read_mixture(tmp_path / "mixture.yaml").sources] == [
        f"{text[1]}/a.jsonl",
        f"{text[1]}/c.parquet",
    ]
    assert format_of(f"{text[1]}/a.jsonl").name == "store"


def test_parts_of_text_that_is_prepared_are_the_same(text):
    """What `prepare_data.py` deals out to its processes, and what each reads of it."""

    def documents(dataset):
        parts = cut_parts(open_text(str(dataset), ReadOptions()).files, 3000)
        options = ReadOptions()
        return [list(read_part(part, None, options, bad_records(options))) for part in parts]

    here, there = map(documents, text)
    assert here == there and len(here) > 3
    assert [found for part in there for found, _ in part] == TEXTS


@of_both
def test_prepared_tokens_are_read_from_a_store(s3, tmp_path):
    write_shards(tmp_path / "prepared", [[[5, 6, 7], [8] * 40], [[9] * 100]])
    source, local = open_data(put(tmp_path / "prepared", "prepared")), open_data(str(tmp_path / "prepared"))
    assert source.is_tokenized and source.num_tokens == local.num_tokens
    assert (source.tokens(0, source.num_tokens) == local.tokens(0, local.num_tokens)).all()
    assert source.fingerprint == local.fingerprint
