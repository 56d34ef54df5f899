"""Prepared folders read as one array, and every way in which one can be damaged."""

import json
import resource
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prepared import write_shards

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.manifest import manifest_name
from llama_dyt.data.formats.shard_writer import ShardWriter
from llama_dyt.data.formats.shards import is_shards, open_shards

SHARDS = [[[1, 5, 6, 2], [1, 2]], [[1, 7, 2]], [[9], [8, 8, 8, 8, 8], [7, 2]]]
TOKENS = [token for shard in SHARDS for document in shard for token in document]


@pytest.fixture
def folder(tmp_path):
    write_shards(tmp_path, SHARDS)
    return tmp_path


def damage(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(("vocab_size", "width"), [(1000, 2), (65536, 2), (65537, 4), (128256, 4)])
def test_tokens_come_back_in_the_type_of_their_vocabulary(tmp_path, vocab_size, width):
    highest = vocab_size - 1
    write_shards(tmp_path, [[[0, highest], [highest, 1, 0]]], vocab_size=vocab_size)
    array = open_shards(tmp_path)
    tokens = array.tokens(0, 5)
    assert tokens.tolist() == [0, highest, highest, 1, 0]
    assert tokens.dtype == np.int32 and tokens.flags.writeable
    assert (tmp_path / "train" / "000000_000.tokens").stat().st_size == 5 * width
    assert array.vocab_size == vocab_size


@given(st.data())
def test_any_stretch_is_that_of_the_whole(tmp_path_factory, data):
    documents = st.lists(st.lists(st.integers(0, 999), min_size=1, max_size=7), min_size=1, max_size=5)
    shards = data.draw(st.lists(documents, min_size=1, max_size=5))
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, shards)
    array = open_shards(folder)
    flat = [document for shard in shards for document in shard]
    whole = [token for document in flat for token in document]
    starts = [0]
    for document in flat:
        starts.append(starts[-1] + len(document))
    assert (array.num_tokens, array.num_documents) == (len(whole), len(flat))
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
    assert array.tokens(start, stop).tolist() == whole[start:stop]
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(flat) + 1)] * 2)))
    found = array.document_starts(first, last)
    assert found.tolist() == starts[first:last] and found.dtype == np.int64


@pytest.mark.parametrize("bounds", [(-1, 2), (0, len(TOKENS) + 1), (3, 2)])
def test_what_is_not_there_is_refused(folder, bounds):
    with pytest.raises(IndexError):
        open_shards(folder).tokens(*bounds)


def test_the_index_is_a_numpy_file(folder):
    assert np.load(folder / "train" / "000002_000.documents.npy", mmap_mode="r").tolist() == [1, 6, 8]


def test_many_machines_make_one_array_in_the_order_of_the_shards(tmp_path):
    write_shards(tmp_path, SHARDS[2:], rank=1, world_size=2, first=2)
    write_shards(tmp_path, SHARDS[:2], rank=0, world_size=2)
    array = open_shards(tmp_path)
    assert array.tokens(0, array.num_tokens).tolist() == TOKENS


def test_the_fingerprint_is_of_the_tokens(folder, tmp_path):
    one = open_shards(folder).fingerprint
    write_shards(tmp_path / "same", SHARDS, dataset="elsewhere")
    write_shards(tmp_path / "other", [*SHARDS[:2], [[9], [8, 8, 8, 8, 7], [7, 2]]])
    assert open_shards(tmp_path / "same").fingerprint == one != open_shards(tmp_path / "other").fingerprint


def test_more_shards_than_may_be_open_and_several_threads(tmp_path):
    shards = [[[number] * 50] for number in range(100)]
    write_shards(tmp_path, shards)
    array = open_shards(tmp_path)
    wrong = []

    def read(seed):
        for start in np.random.default_rng(seed).integers(0, 4900, 200):
            if array.tokens(start, start + 100).tolist() != [i // 50 for i in range(start, start + 100)]:
                wrong.append(start)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_opening_and_reading_hold_next_to_nothing(tmp_path):
    length = 1 << 27
    manifest = write_shards(tmp_path, [[[1] * 10]])
    file = tmp_path / "train" / "000000_000.tokens"
    with open(file, "r+b") as stream:
        stream.truncate(2 * length)
    np.save(tmp_path / "train" / "000000_000.documents.npy", np.array([length]))

    def change(content):
        content["shards"][0] |= {"tokens": length, "bytes": 2 * length}

    damage(tmp_path / manifest_name(manifest.rank, 1), change)
    tracemalloc.start()
    array = open_shards(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for start in range(0, length, 1 << 22):
        array.tokens(start, start + 4096)
        array.tokens(start, start + (1 << 20))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 << 10  # kilobytes; the file has 256 MB


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("000001_000.tokens", lambda f: f.write_bytes(f.read_bytes()[:-1]), "has 5 bytes, but its manifest says 6"),
        ("000001_000.tokens", lambda f: f.unlink(), "is missing"),
        ("000002_000.documents.npy", lambda f: f.write_bytes(f.read_bytes() + b"x"), "but its manifest says"),
    ],
)
def test_a_file_that_is_not_as_it_should_be_is_named_at_once(folder, name, change, message):
    change(folder / "train" / name)
    with pytest.raises(DataError, match=message) as error:
        open_shards(folder)
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["000001_000.tokens", "000000_000.documents.npy"])
def test_verify_finds_one_flipped_bit(folder, name):
    open_shards(folder).verify()
    file = folder / "train" / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    array = open_shards(folder)  # sizes are right, so opening does not see it
    with pytest.raises(DataError, match=f"{name}: does not have the checksum"):
        array.verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(version=2), "format version 2, but this program reads version 1"),
        (lambda c: c.update(format="other"), "not a manifest of prepared data"),
        (lambda c: c.pop("eos"), "a field is missing or not known"),
        (lambda c: c.update(vocab_size=70000), "70000 pieces does not fit into uint16"),
        (lambda c: c.update(dtype="int64"), "neither uint16 nor uint32"),
        (lambda c: c.update(rank=3), "was written by rank 3 of 1"),
        (lambda c: c["shards"][0].update(tokens=7), "which cannot be"),
        (lambda c: c["shards"][0].update(name="../x"), "a shard named"),
        (lambda c: c["shards"].append(c["shards"][0]), "stands twice"),
        (lambda c: c["shards"].clear(), "holds no document"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(folder, change, message):
    damage(folder / manifest_name(0, 1), change)
    with pytest.raises(DataError, match=message):
        open_shards(folder)


def test_a_manifest_that_is_cut_off_is_refused(folder):
    file = folder / manifest_name(0, 1)
    file.write_text(file.read_text()[:100])
    with pytest.raises(DataError, match="cannot be read"):
        open_shards(folder)


def test_a_missing_rank_is_named(tmp_path):
    write_shards(tmp_path, SHARDS, rank=1, world_size=3)
    with pytest.raises(DataError, match="of 3 ranks no manifest of 0, 2; run prepare_data.py with --rank 0"):
        open_shards(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokenizer", "fedcba9876543210"),
        ("vocab_size", 900),
        ("eos", 3),
        ("validation_fraction", 0.5),
        ("sources", []),
        ("world_size", 3),
    ],
)
def test_machines_that_disagree_are_refused(tmp_path, field, value):
    write_shards(tmp_path, SHARDS[:1], rank=0, world_size=2)
    write_shards(tmp_path, SHARDS[1:], **{"rank": 1, "world_size": 2, "first": 1, field: value})
    with pytest.raises(DataError, match=f"another {field}"):
        open_shards(tmp_path)


def test_one_name_on_two_machines_is_refused(tmp_path):
    write_shards(tmp_path, SHARDS, rank=0, world_size=2)
    write_shards(tmp_path, SHARDS, rank=1, world_size=2)
    with pytest.raises(DataError, match="train/000000_000 stands twice"):
        open_shards(tmp_path)


def test_splits_are_apart(folder):
    with pytest.raises(DataError, match="'validation' holds no document; prepare the data with --validation_fraction"):
        open_shards(folder, "validation")


def test_what_is_no_prepared_folder(tmp_path):
    assert not is_shards(tmp_path) and not is_shards(tmp_path / "nothing")
    with pytest.raises(DataError, match="holds no prepared data"):
        open_shards(tmp_path)


@pytest.mark.parametrize("token", [-1, 10])
def test_a_token_outside_the_vocabulary_is_not_written(tmp_path, token):
    writer = ShardWriter(tmp_path, "train", "x", vocab_size=10)
    with pytest.raises(DataError, match="its vocabulary has 10 pieces"):
        writer.write(np.array([1, token], np.int32), [2])
    writer.discard()
    assert list((tmp_path / "train").iterdir()) == []


def test_nothing_has_a_name_before_it_is_whole(tmp_path):
    writer = ShardWriter(tmp_path, "train", "x", vocab_size=10)
    writer.write(np.array([1, 2], np.int32), [2])
    assert [file.name for file in (tmp_path / "train").iterdir() if not file.name.startswith(".")] == []
    writer.finish()
    writer.discard()
    assert sorted(file.name for file in (tmp_path / "train").iterdir()) == ["x.documents.npy", "x.tokens"]
