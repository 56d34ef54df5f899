"""A format in one file outside of the package (`table_format.py`) is read, resumed, prepared and mixed as ours are."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from llama_dyt.data.formats.shards import open_shards
from llama_dyt.data.tokenizing.encode import encode_batch, frame_document
from llama_dyt.data.tokenizing.tokenizer import load_tokenizer
from llama_dyt.training.trackers.jsonl import read_metrics
from tests.cli.conftest import Corpus, as_flags, corpus  # noqa: F401
from tests.cli.entries import Command, Outcome

ALONE = Path(__file__).with_name("table_format.py")
STEPS = 4
MINE = {"import": "my_table", "table_delimiter": ";"}


def write_table(file: Path, lines: Path, *fields: str, delimiter: str = ";") -> Path:
    """The records of a file of JSON lines as a .table."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fields, extrasaction="ignore", delimiter=delimiter)
        writer.writeheader()
        writer.writerows(map(json.loads, lines.read_text(encoding="utf-8").splitlines()))
    return file


@pytest.fixture(scope="module")
def folder(corpus: Corpus, tmp_path_factory) -> Path:  # noqa: F811
    """Where a user works: the one file, data of its kind, and the same data as JSON lines."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copy(ALONE, folder / "my_table.py")
    write_table(folder / "train.table", corpus.train, "meta", "text")
    write_table(folder / "pairs.table", corpus.prompts, "completion", "prompt")
    for kind in ("table", "jsonl"):
        text = folder / "train.table" if kind == "table" else corpus.train
        mixed = {"text": {"path": str(text), "weight": 2}, "prompts": {"path": str(corpus.prompts), "field": "prompt"}}
        (folder / f"{kind}.yaml").write_text(json.dumps({"sources": mixed}))
    return folder


def start(corpus: Corpus, folder: Path, **flags) -> Outcome:  # noqa: F811
    given = {"max_steps": STEPS, "save_interval": 2, "lr_scheduler": "constant", "tensorboard_dir": "none"}
    words = corpus.pretrain_flags(**given | flags)
    outcome = Command("pretrain", words, folder, launcher="srun", processes=2).run()
    assert outcome.status == 0, outcome.stderr
    return outcome


def figures(folder: Path) -> list[dict]:
    kept = []
    for record in read_metrics(folder / "metrics.jsonl"):
        validated = record.get("validation_loss", {})
        names = ("step", "loss", "grad_norm", "tokens_seen")
        kept.append({name: record[name] for name in names if name in record} | validated | record.get("sources", {}))
    return kept


@pytest.fixture(scope="module")
def runs(corpus, folder) -> Path:  # noqa: F811
    """A mixture with a .table, trained on under two plugins and broken off half way; and the same as JSON lines."""
    common = {"validation_freq": 2, "validation_batches": 2}
    mine = {**MINE, **common, "dataset": "table.yaml", "validation_dataset": "train.table"}
    for plugin in ("ddp", "fsdp"):
        for changes in ({"max_steps": 2}, {"load": "auto"}):
            outcome = start(corpus, folder, **mine, **changes, plugin=plugin, save_dir=plugin)
            assert "text: " in outcome.stderr and "read 1 file" in outcome.stderr
    ours = {"dataset": "jsonl.yaml", "validation_dataset": corpus.train}
    start(corpus, folder, **common, **ours, plugin="ddp", save_dir="jsonl")
    return folder


@pytest.mark.slow
def test_it_trains_validates_and_resumes_to_the_last_bit_as_the_same_text_does_in_jsonl(runs):
    assert figures(runs / "ddp") == figures(runs / "jsonl")
    weights = [runs / name / f"step_{STEPS:08d}/model/model.safetensors" for name in ("ddp", "jsonl")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
def test_it_does_under_another_plugin(runs):
    for own, other in zip(figures(runs / "fsdp"), figures(runs / "jsonl"), strict=True):
        assert own == pytest.approx(other, rel=1e-5)


@pytest.mark.slow
def test_it_is_fine_tuned_on(corpus, runs):  # noqa: F811
    given = {"dataset": "pairs.table", "model_path": "ddp", "plugin": "ddp", "mixed_precision": "fp32"}
    words = as_flags({**MINE, **given, "max_length": 64, "max_steps": 1, "save_dir": "tuned"})
    outcome = Command("finetune", words, runs).run()
    assert outcome.status == 0, outcome.stderr
    assert "48 examples (0 cut at --max_length 64" in outcome.stderr


def test_it_is_prepared_by_any_number_of_workers(corpus, folder):  # noqa: F811
    words = ["--import", "my_table", "--table_delimiter", ";", "-d", "train.table", "-o", "tokens", "-j", "2"]
    outcome = Command("prepare_data", [*words, "--tokenizer", str(corpus.tokenizer)], folder).run()
    assert outcome.status == 0, outcome.stderr
    tokenizer = load_tokenizer(corpus.tokenizer)
    texts = [json.loads(line)["text"] for line in corpus.train.read_text(encoding="utf-8").splitlines()]
    framed = [
        frame_document(ids, tokenizer.bos_token_id, tokenizer.eos_token_id) for ids in encode_batch(tokenizer, texts)
    ]
    tokens = open_shards(folder / "tokens")
    assert tokens.tokens(0, tokens.num_tokens).tolist() == np.concatenate(framed).tolist()
    other = [word if word != ";" else "," for word in words]
    refused = Command("prepare_data", [*other, "--tokenizer", str(corpus.tokenizer)], folder).run()
    assert refused.status == 2
    (problem,) = refused.errors
    assert problem.startswith("train.table, record 0: has no field 'text'; its records have meta;text")


def test_its_name_is_known_only_where_it_is_imported(corpus, folder):  # noqa: F811
    shown = Command("prepare_data", ["--import", "my_table", "--help"], folder).run()
    assert shown.status == 0 and "--table_delimiter" in shown.stdout
    refused = Command("pretrain", corpus.pretrain_flags(dataset="train.table"), folder).run()
    assert refused.status == 2
    assert "--dataset train.table: not a format that can be read; give .jsonl, .jsonl.gz" in refused.stderr
    wrong = Command("pretrain", corpus.pretrain_flags(dataset="pairs.table", **MINE), folder).run()
    assert "pairs.table, record 0: has no field 'text'; its records have completion (str), prompt (str)" in wrong.stderr
