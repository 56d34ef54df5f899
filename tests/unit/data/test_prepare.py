"""Preparing text: what comes out, that it depends on the text alone, and that a stop costs nothing."""

import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from corpora import write_jsonl, write_parquet

from llama_dyt.core.errors import ConfigurationError, DataError
from llama_dyt.data.formats.arrow import ArrowDocuments
from llama_dyt.data.formats.format import FORMATS
from llama_dyt.data.formats.hub import Hub
from llama_dyt.data.formats.shards import open_shards
from llama_dyt.data.formats.sources import ReadOptions
from llama_dyt.data.order.held_out import is_held_out
from llama_dyt.data.preparing.journal import Journal
from llama_dyt.data.preparing.parts import Part
from llama_dyt.data.preparing.prepare import prepare
from llama_dyt.data.preparing.settings import PrepareSettings, parse_preparation
from llama_dyt.data.preparing.worker import Job, make_preparer
from llama_dyt.data.tokenizing.encode import encode_batch
from llama_dyt.data.tokenizing.tokenizer import load_tokenizer, tokenizer_fingerprint
from tests import forks

REPOSITORY = Path(__file__).resolve().parents[3]
SMALL = {"part_bytes": 2000, "shard_tokens": 300, "show_progress": False}


def texts_of(count, seed=0):
    draw = random.Random(seed)
    words = ["def", "area(width)", "ünï", "漢字", "the quick brown fox", "\n", "  ", "\t", "print(42)"]
    return [f"{seed}/{number} " + " ".join(draw.choices(words, k=draw.randrange(30))) for number in range(count)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Every format, sizes small and large, and all its texts in the order of the files."""
    folder = tmp_path_factory.mktemp("corpus")
    names = ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet", "e.jsonl", "f.jsonl"]
    texts = []
    for seed, (name, count) in enumerate(zip(names, [120, 30, 30, 60, 1, 2])):
        mine = texts_of(count, seed)
        (write_parquet if name.endswith("parquet") else write_jsonl)(folder / name, mine)
        texts += mine
    return folder, texts


@pytest.fixture(scope="module")
def tokenizer_folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tokenizer.save_pretrained(folder)
    return str(folder)


def settings(corpus, output, tokenizer_folder, **changes):
    values = {"tokenizer": tokenizer_folder, "num_workers": 1, **changes}
    return PrepareSettings(dataset=str(corpus), output_path=str(output), **values)


def content(folder, leave_out=()):
    """Checksum of every file below a folder."""
    files = (file for file in Path(folder).rglob("*") if file.is_file())
    found = {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return {name: digest for name, digest in found.items() if not name.startswith(tuple(leave_out))}


def documents_of(folder, split="train"):
    array = open_shards(folder, split)
    starts = array.document_starts(0, array.num_documents + 1)
    return [array.tokens(a, b).tolist() for a, b in zip(starts[:-1], starts[1:])]


def framed(tokenizer, texts):
    return [[tokenizer.bos_token_id, *ids.tolist(), tokenizer.eos_token_id] for ids in encode_batch(tokenizer, texts)]


@pytest.fixture(scope="module")
def whole(corpus, tokenizer_folder, tmp_path_factory):
    """The corpus prepared in one go by one worker."""
    folder = tmp_path_factory.mktemp("whole")
    return prepare(settings(corpus[0], folder, tokenizer_folder), **SMALL)


def test_every_document_is_there_once_and_in_order(corpus, tokenizer, whole):
    assert documents_of(whole.folder) == framed(tokenizer, corpus[1])
    assert whole.documents == {"train": len(corpus[1]), "validation": 0}
    assert whole.tokens["train"] == whole.new_tokens == open_shards(whole.folder).num_tokens
    assert len({shard.name[:6] for shard in whole.manifest.shards}) > 5, "no parts"
    assert any(not shard.name.endswith("00000") for shard in whole.manifest.shards), "no part of several shards"
    open_shards(whole.folder).verify()


def test_the_folder_holds_its_tokenizer_and_nothing_of_the_work(whole, tokenizer):
    assert sorted(file.name for file in whole.folder.iterdir()) == [
        "manifest_00000_of_00001.json",
        "tokenizer",
        "train",
    ]
    text = "def area(x):\n  return"
    assert np.array_equal(
        *(encode_batch(t, [text])[0] for t in (load_tokenizer(whole.folder / "tokenizer"), tokenizer))
    )


def test_the_bytes_do_not_depend_on_the_workers(corpus, tokenizer_folder, whole, tmp_path):
    prepare(settings(corpus[0], tmp_path, tokenizer_folder, num_workers=3), **SMALL)
    assert content(tmp_path) == content(whole.folder)


def test_machines_together_make_what_one_makes(corpus, tokenizer_folder, whole, tmp_path):
    for rank in (2, 0, 1):
        prepare(settings(corpus[0], tmp_path, tokenizer_folder, rank=rank, world_size=3), **SMALL)
    assert content(tmp_path, ["manifest"]) == content(whole.folder, ["manifest"])
    assert open_shards(tmp_path).fingerprint == open_shards(whole.folder).fingerprint


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_held_out_documents_are_in_a_split_of_their_own(corpus, tokenizer, tokenizer_folder, tmp_path, fraction):
    report = prepare(settings(corpus[0], tmp_path, tokenizer_folder, validation_fraction=fraction), **SMALL)
    held_out = [text for text in corpus[1] if is_held_out(text, fraction)]
    assert documents_of(tmp_path, "validation") == framed(tokenizer, held_out)
    if fraction < 1:
        kept = [text for text in corpus[1] if not is_held_out(text, fraction)]
        assert documents_of(tmp_path) == framed(tokenizer, kept)
    assert report.documents["validation"] == len(held_out) > 0


@pytest.mark.parametrize(("num_workers", "fraction"), [(1, 0.0), (3, 0.3)])
@pytest.mark.parametrize("limit", [1, 350, 2000, 3001, 10**9])
def test_a_limit_takes_the_first_documents_that_fit(
    corpus, tokenizer, tokenizer_folder, tmp_path, limit, num_workers, fraction
):
    flags = {"max_num_tokens": limit, "num_workers": num_workers, "validation_fraction": fraction}
    report = prepare(settings(corpus[0], tmp_path, tokenizer_folder, **flags), **SMALL)
    expected, total = [], 0
    for document in framed(tokenizer, corpus[1]):
        total += len(document)
        if total > limit:
            break
        expected.append(document)
    found = [d for split in ("train", "validation") if report.documents[split] for d in documents_of(tmp_path, split)]
    assert sorted(found) == sorted(expected)
    names = {f"{shard.split}/{shard.name}" for shard in report.manifest.shards}
    on_disk = {f"{file.parent.name}/{file.name.split('.')[0]}" for file in tmp_path.glob("[tv][ra]*/*.*")}
    assert on_disk - {"tokenizer/tokenizer", "tokenizer/tokenizer_config"} == names


@pytest.mark.parametrize(
    ("changes", "bos", "eos"),
    [({"add_bos": False}, False, True), ({"add_eos": False}, True, False), ({"add_bos": True}, True, True)],
)
def test_what_stands_around_a_document_is_a_choice(tokenizer, tokenizer_folder, tmp_path, changes, bos, eos):
    write_jsonl(tmp_path / "a.jsonl", ["x = 1"])
    prepare(settings(tmp_path / "a.jsonl", tmp_path / "out", tokenizer_folder, **changes), **SMALL)
    (document,) = documents_of(tmp_path / "out")
    assert (document[0] == tokenizer.bos_token_id, document[-1] == tokenizer.eos_token_id) == (bos, eos)
    array = open_shards(tmp_path / "out")
    assert (array.bos is not None, array.eos is not None) == (bos, eos)


def test_empty_documents_and_bad_lines_are_counted(tokenizer, tokenizer_folder, tmp_path):
    lines = [
        b'{"text": "one"}',
        b'{"text": ""}',
        b"{broken",
        b'{"text": "tw\xff"}',
        b"",
        b'{"txt": 1}',
        b'{"text": "nul \\u0000 x"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    report = prepare(settings(tmp_path / "a.jsonl", tmp_path / "out", tokenizer_folder, skip_bad_lines=True), **SMALL)
    assert (report.manifest.num_bad_lines, report.manifest.num_empty_documents) == (3, 1)
    assert documents_of(tmp_path / "out") == framed(tokenizer, ["one", "nul \x00 x"])
    assert "left out: 3 bad lines, 1 empty documents" in str(report)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_line_of_a_cut_file_is_named_and_the_rest_is_kept(tokenizer_folder, tmp_path, workers):
    texts = texts_of(200)
    write_jsonl(tmp_path / "a.jsonl", texts)
    lines = (tmp_path / "a.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_bytes(b"".join([*lines[:150], b"{broken\n", *lines[150:]]))
    flags = settings(tmp_path / "a.jsonl", tmp_path / "out", tokenizer_folder, num_workers=workers)
    with pytest.raises(DataError, match="a.jsonl, line 151: is not valid JSON .*--skip_bad_lines"):
        prepare(flags, **SMALL)
    with pytest.raises(DataError, match="run prepare_data.py first"):
        open_shards(tmp_path / "out")
    again = PrepareSettings(**{**flags.__dict__, "skip_bad_lines": True})
    report = prepare(again, **SMALL)
    assert report.documents["train"] == 200 and report.manifest.num_bad_lines == 1
    assert report.new_tokens < report.tokens["train"], "nothing was kept"


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_truncated_file_is_named_and_so_is_its_change(tokenizer_folder, tmp_path, name):
    write = write_parquet if name.endswith("parquet") else write_jsonl
    write_jsonl(tmp_path / "corpus" / "0.jsonl", texts_of(50, 7))
    file = write(tmp_path / "corpus" / name, texts_of(300, 8))
    good = file.read_bytes()
    file.write_bytes(good[: len(good) - len(good) // 3])
    with pytest.raises(DataError, match=f"{name}.*(cut off|not a valid)"):
        prepare(settings(tmp_path / "corpus", tmp_path / "out", tokenizer_folder), **SMALL)
    assert not list((tmp_path / "out").glob("manifest*"))
    file.write_bytes(good)  # another size, so other parts
    with pytest.raises(ConfigurationError, match=f"another sources .*'{name}', 'bytes'.*or another folder"):
        prepare(settings(tmp_path / "corpus", tmp_path / "out", tokenizer_folder), **SMALL)


def test_a_column_that_is_not_there_is_told(tokenizer_folder, tmp_path):
    write_parquet(tmp_path / "a.parquet", texts_of(10), column="content")
    with pytest.raises(DataError, match=r"has no column 'text' \(it has content, meta\)"):
        prepare(settings(tmp_path / "a.parquet", tmp_path / "out", tokenizer_folder), **SMALL)


def test_problems_of_text_and_tokenizer_are_told_together(tmp_path):
    with pytest.raises(DataError) as error:
        prepare(settings(tmp_path / "none.jsonl", tmp_path / "out", str(tmp_path / "no_tokenizer")), **SMALL)
    assert "none.jsonl: no such file" in str(error.value) and "no_tokenizer: no such file" in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation_fraction": 0.5}, r"another validation_fraction \(0.0, not 0.5\)"),
        ({"max_num_tokens": 5}, "another max_num_tokens"),
        ({"add_eos": False}, "another eos"),
        ({"world_size": 2}, "another world_size"),
        ({"format": "arrow"}, "another written_as"),
        ({"train_tokenizer": 400, "tokenizer": None}, "holds one of 330 pieces already"),
    ],
)
def test_other_settings_do_not_go_into_the_same_folder(corpus, tokenizer_folder, whole, change, message):
    before = content(whole.folder)
    with pytest.raises(ConfigurationError, match=message):
        prepare(settings(corpus[0], whole.folder, **{"tokenizer_folder": tokenizer_folder, **change}), **SMALL)
    assert {name: d for name, d in content(whole.folder).items() if "journal" not in name} == before


def test_another_tokenizer_does_not_go_into_the_same_folder(corpus, whole, tmp_path):
    from llama_dyt.data.tokenizing.tokenizer import train_sentencepiece

    train_sentencepiece(texts_of(100, 9), tmp_path / "other", vocab_size=300)
    with pytest.raises(ConfigurationError, match="holds another one, with which the data there was prepared"):
        prepare(settings(corpus[0], whole.folder, str(tmp_path / "other")), **SMALL)


def test_given_again_there_is_nothing_to_do(corpus, tokenizer_folder, whole):
    before = {file: file.stat().st_mtime_ns for file in whole.folder.rglob("*") if file.is_file()}
    report = prepare(settings(corpus[0], whole.folder, None), **SMALL)
    assert report.new_tokens == 0 and report.tokens == whole.tokens and "nothing was left to do" in str(report)
    assert {file: file.stat().st_mtime_ns for file in whole.folder.rglob("*") if file.is_file()} == before


def test_a_tokenizer_is_trained_on_the_text_first(corpus, tmp_path):
    flags = {"train_tokenizer": 340, "validation_fraction": 0.5}
    report = prepare(settings(corpus[0], tmp_path / "out", None, **flags), **SMALL)
    made = load_tokenizer(tmp_path / "out" / "tokenizer")
    assert len(made) == report.manifest.vocab_size == 340
    kept = [text for text in corpus[1] if not is_held_out(text, 0.5)]
    assert documents_of(tmp_path / "out") == framed(made, kept)
    with pytest.raises(ConfigurationError, match="rank 0 trains it"):
        prepare(settings(corpus[0], tmp_path / "two", None, **flags, rank=1, world_size=2), **SMALL)


def test_the_authors_layout(corpus, tokenizer, tokenizer_folder, tmp_path):
    for rank in (0, 1):
        flags = {"format": "arrow", "rank": rank, "world_size": 2, "validation_fraction": 0.2}
        prepare(settings(corpus[0], tmp_path, tokenizer_folder, **flags), **SMALL)
    names = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.arrow"))
    assert names == ["rank_0.arrow", "rank_1.arrow", "validation/rank_0.arrow", "validation/rank_1.arrow"]
    with pyarrow.ipc.open_file(tmp_path / "rank_0.arrow") as reader:
        assert reader.schema == pyarrow.schema([("input_ids", pyarrow.uint32())])
        first = reader.get_batch(0)["input_ids"].to_pylist()
    kept = [ids.tolist() for ids in encode_batch(tokenizer, [t for t in corpus[1] if not is_held_out(t, 0.2)])]
    assert first == kept[0]
    found = [ids.tolist() for ids, _ in ArrowDocuments(tmp_path).documents()]
    assert sorted(found) == sorted(kept)
    assert not any(tmp_path.glob(".journal*"))


def program(corpus, output, tokenizer_folder) -> list[str]:
    """What follows `python` to prepare a corpus with two workers."""
    code = (
        "import json, sys\n"
        "from llama_dyt.data.preparing.settings import PrepareSettings\n"
        "from llama_dyt.data.preparing.prepare import prepare\n"
        "from llama_dyt.core.errors import LlamaDytError\n"
        "try:\n"
        "    prepare(PrepareSettings(**json.loads(sys.argv[1])), **json.loads(sys.argv[2]))\n"
        "except LlamaDytError as error:\n"
        "    sys.exit(f'error: {error}')\n"
    )
    values = settings(corpus, output, tokenizer_folder, num_workers=2).__dict__
    return ["-c", code, json.dumps(values), json.dumps(SMALL)]


def test_killed_twice_nothing_is_lost_and_nothing_twice(corpus, tokenizer, tokenizer_folder, whole, tmp_path):
    kills = 0
    for wanted in (3, 12):
        process = forks.ForkedProgram(program(corpus[0], tmp_path, tokenizer_folder))
        while len(list(tmp_path.glob(".journal*/0*.json"))) < wanted and process.poll() is None:
            time.sleep(0.001)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 2, "it ended before it could be killed"
    with pytest.raises(DataError, match="run prepare_data.py first"):
        open_shards(tmp_path)
    report = prepare(settings(corpus[0], tmp_path, tokenizer_folder), **SMALL)
    assert 0 < report.new_tokens < report.tokens["train"]
    assert content(tmp_path) == content(whole.folder)
    counted = Counter(map(tuple, documents_of(tmp_path)))
    assert counted == Counter(map(tuple, framed(tokenizer, corpus[1])))


def test_a_full_disk_is_told_in_one_line_and_then_gone_on_from(tokenizer_folder, tmp_path):
    import resource

    write_jsonl(tmp_path / "a.jsonl", texts_of(200))
    limited = subprocess.run(
        [sys.executable, *program(tmp_path / "a.jsonl", tmp_path / "out", tokenizer_folder)],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400)),
    )
    message = limited.stderr
    assert limited.returncode == 1 and "cannot be written (File too large)" in message, message
    assert "what is finished is kept" in message and len(message.strip().splitlines()) == 1
    report = prepare(settings(tmp_path / "a.jsonl", tmp_path / "out", tokenizer_folder), **SMALL)
    assert report.documents["train"] == 200


def test_flags_have_the_authors_names():
    line = "--rank 1 --world_size 4 --data_path /data/pile --output_path out --max_num_tokens 100 --tokenizer x"
    found = parse_preparation(line.split())
    assert (found.rank, found.world_size, found.dataset, found.max_num_tokens) == (1, 4, "/data/pile", 100)


def test_all_wrong_flags_are_told_together():
    with pytest.raises(ConfigurationError) as error:
        parse_preparation(
            [
                "--rank",
                "4",
                "--world_size",
                "4",
                "--outptu",
                "x",
                "--format",
                "csv",
                "--add_bos",
                "--validation_fraction",
                "2",
            ]
        )
    text = str(error.value)
    for part in ("did you mean '--output_path'", "unknown format 'csv'", "--rank 4", "--validation_fraction 2", "-d"):
        assert part in text


def test_gzip_of_many_members_and_a_line_longer_than_a_part(tokenizer, tokenizer_folder, tmp_path):
    texts = ["short", "x" * 50_000, "after"]
    write_jsonl(tmp_path / "c" / "a.jsonl", texts)
    members = [gzip.compress(json.dumps({"text": text}).encode() + b"\n") for text in texts]
    (tmp_path / "c" / "b.jsonl.gz").write_bytes(b"".join(members))
    prepare(settings(tmp_path / "c", tmp_path / "out", tokenizer_folder), **SMALL)
    assert documents_of(tmp_path / "out") == framed(tokenizer, texts * 2)
    assert os.path.exists(tmp_path / "out" / "tokenizer")


class Streamed(Hub):
    """A folder streamed by `datasets`, as the hub is."""

    name, order = "streamed", 0

    def matches(self, dataset):
        return dataset.endswith("/hub")


def test_a_streamed_dataset_of_one_file_is_dealt_out_by_documents_and_gone_on_from(
    tokenizer, tokenizer_folder, tmp_path, monkeypatch
):
    texts = texts_of(40)
    write_parquet(tmp_path / "hub" / "a.parquet", texts)
    monkeypatch.setattr(FORMATS, "_entries", {"streamed": Streamed()})
    for rank in (0, 1):
        journal = tmp_path / f"journal_{rank}"
        journal.mkdir()
        np.zeros(2, np.int64).tofile(journal / "progress")
        job = Job(
            output=tmp_path / f"out_{rank}",
            journal=journal,
            tokenizer=Path(tokenizer_folder),
            fingerprint=tokenizer_fingerprint(tokenizer),
            vocab_size=len(tokenizer),
            bos=1,
            eos=2,
            validation_fraction=0.0,
            options=ReadOptions(),
            shard_tokens=300,
            rank=rank,
            world_size=2,
            dataset=str(tmp_path / "hub"),
            num_shares=0,
            progress=journal / "progress",
        )
        total = make_preparer(job)((Part(rank, (), 0), None))
        entries = Journal(job.output, journal).entries(rank)
        assert len(entries) > 3
        (journal / f"{entries[-1].name}.json").unlink()
        (journal / f"{entries[-2].name}.json").unlink()
        assert make_preparer(job)((Part(rank, (), 0), None)) == total
        assert Journal(job.output, journal).entries(rank) == entries
        shards = [shard for entry in entries for shard in entry.shards]
        found = np.concatenate([np.fromfile(shard.tokens_file(job.output), "<u2") for shard in shards])
        assert found.tolist() == [token for document in framed(tokenizer, texts[rank::2]) for token in document]


def test_a_streamed_dataset_of_many_files_is_divided_and_the_same_from_any_number_of_machines(
    tokenizer, tokenizer_folder, tmp_path, monkeypatch
):
    texts = [texts_of(10, seed) for seed in range(5)]
    for number, mine in enumerate(texts):
        write_parquet(tmp_path / "hub" / f"train-{number}.parquet", mine)
    monkeypatch.setattr(FORMATS, "_entries", {"streamed": Streamed()})
    for machines in (1, 2):
        for rank in range(machines):
            flags = settings(tmp_path / "hub", tmp_path / f"of_{machines}", tokenizer_folder, num_workers=2)
            report = prepare(replace(flags, rank=rank, world_size=machines), **SMALL)
        assert report.documents["train"] == (50 if machines == 1 else 20)  # the second has the second and the fourth
    assert documents_of(tmp_path / "of_1") == documents_of(tmp_path / "of_2") == framed(tokenizer, sum(texts, []))
    only_manifests = ("manifest",)
    assert content(tmp_path / "of_1", only_manifests) == content(tmp_path / "of_2", only_manifests)


def test_more_machines_than_parts(tokenizer, tokenizer_folder, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    for rank in range(3):
        flags = settings(tmp_path / "a.jsonl", tmp_path / "out", tokenizer_folder, rank=rank, world_size=3)
        report = prepare(flags, **SMALL)
        assert report.documents["train"] == (2 if rank == 0 else 0)
    assert documents_of(tmp_path / "out") == framed(tokenizer, ["one", "two"])
