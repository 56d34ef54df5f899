"""prepare_data.py as a user starts it: a folder that verifies, errors in one line, and going on after a stop."""

from __future__ import annotations

import json
import os

from llama_dyt.data.formats.shards import open_shards
from llama_dyt.launch.claim import take
from tests.cli.entries import Command, run_two_at_once


def test_a_corpus_becomes_shards_that_verify(corpus, tmp_path):
    flags = ["-d", corpus.train, "--tokenizer", corpus.tokenizer, "--validation_fraction", "0.2", "--format"]
    shards, arrow = run_two_at_once(
        Command("prepare_data", [*flags, "shards", "-o", "shards"], tmp_path),
        Command("prepare_data", [*flags, "arrow", "--data_path", corpus.train, "--output_path", "arrow"], tmp_path),
    )
    assert (shards.status, arrow.status) == (0, 0), shards.stderr + arrow.stderr
    lines = len(corpus.train.read_text(encoding="utf-8").splitlines())
    documents = [open_shards(tmp_path / "shards", split).num_documents for split in ("train", "validation")]
    assert sum(documents) == lines and min(documents) > 0
    assert f"{documents[1]:,} documents" in shards.stdout and "tokens/s" in shards.stderr
    assert (tmp_path / "arrow" / "rank_0.arrow").is_file()

    file = next((tmp_path / "shards" / "train").glob("*.tokens"))
    good = file.read_bytes()
    verified = Command("prepare_data", ["--verify", "-o", "shards"], tmp_path).run()
    file.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    damaged = Command("prepare_data", ["--verify", "-o", "shards"], tmp_path).run()
    assert verified.status == 0 and "are as they were written" in verified.stdout, verified.stderr
    assert damaged.status == 2 and "does not have the checksum in its manifest" in damaged.stderr


def test_mistakes_are_told_at_once_and_together(tmp_path):
    outcome = Command("prepare_data", ["--data_pth", "x", "--rank", "1", "-o", "out"], tmp_path).run()
    assert outcome.status == 2
    assert outcome.errors == [
        "unknown flag '--data_pth': did you mean '--data_path'?",
        "--dataset: say which text to prepare, such as -d sample or -d '/data/*.jsonl.zst'",
        "--rank 1: the ranks of --world_size 1 are 0 to 0",
    ]
    assert not (tmp_path / "out").exists()


def test_a_bad_line_is_named_and_skipped_by_choice(corpus, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "one"}) + "\n{broken\n", encoding="utf-8")
    flags = ["-d", "a.jsonl", "-o", "out", "--tokenizer", corpus.tokenizer]
    refused = Command("prepare_data", flags, tmp_path).run()
    skipped = Command("prepare_data", [*flags, "--skip_bad_lines"], tmp_path).run()
    assert refused.status == 2 and "a.jsonl, line 2: is not valid JSON" in refused.stderr
    assert skipped.status == 0 and "left out: 1 bad lines" in skipped.stdout, skipped.stderr


def test_a_share_that_another_process_prepares_is_refused(corpus, tmp_path):
    flags = ["-d", corpus.train, "-o", "out", "--tokenizer", corpus.tokenizer]
    claim = take(tmp_path / "out", "prepare_data.py", name="claim_00000_of_00001")
    refused = Command("prepare_data", flags, tmp_path).run()
    claim.check()
    claim.release()
    assert refused.status == 2
    assert f"--output_path out is being written by prepare_data.py (process {os.getpid()} on " in refused.stderr
    assert Command("prepare_data", flags, tmp_path).run().status == 0
    assert not list((tmp_path / "out").glob(".*"))
