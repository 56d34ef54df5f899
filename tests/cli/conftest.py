"""What the tests of the entries share: one small corpus, one tokenizer, one finished run."""

from __future__ import annotations

import json
import pydoc
from dataclasses import dataclass
from pathlib import Path

import pytest

from llama_dyt.data.tokenizing.tokenizer import train_sentencepiece
from llama_dyt.training.trackers.jsonl import read_metrics
from tests.cli.entries import MODEL_SIZE, Command, Outcome

VOCAB_SIZE = 512
NUM_STEPS = 12


@dataclass(frozen=True)
class Corpus:
    """Files that runs read. `train` is JSON lines of text, `prompts` of prompts and completions."""

    folder: Path
    train: Path
    prompts: Path
    tokenizer: Path

    def pretrain_flags(self, **changes) -> list[str]:
        """A run of a tiny model in fp32 for NUM_STEPS steps, some of its flags changed (None leaves one out)."""
        flags = {
            "dataset": self.train,
            "tokenizer": self.tokenizer,
            "plugin": "zero2",
            "mixed_precision": "fp32",
            "max_length": 32,
            "max_steps": NUM_STEPS,
            "warmup_steps": 2,
            "lr": "1e-2",
        }
        return [*MODEL_SIZE, *as_flags({**flags, **changes})]


def as_flags(flags: dict) -> list[str]:
    return [word for name, value in flags.items() if value is not None for word in (f"--{name}", str(value))]


@dataclass(frozen=True)
class Run:
    """A run that has ended: where it saved, what it was asked, what it said."""

    save_dir: Path
    flags: list[str]
    outcome: Outcome

    @property
    def metrics(self) -> list[dict]:
        return read_metrics(self.save_dir / "metrics.jsonl")

    def step(self, number: int) -> Path:
        return self.save_dir / f"step_{number:08d}"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Corpus:
    """Documentation of standard modules, cut into documents of 2,000 characters."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [pydoc.plain(pydoc.render_doc(name)) for name in ("argparse", "json", "random", "threading", "typing")]
    documents = [text[start : start + 2000] for text in texts for start in range(0, len(text), 2000)]
    train_sentencepiece(texts, folder / "tokenizer", VOCAB_SIZE)
    write_lines(folder / "train.jsonl", [{"text": text, "meta": {}} for text in documents])
    colours = ("red", "green", "blue")
    pairs = [
        {"prompt": f"Colour of thing {number}: ", "completion": f"it is {colours[number % 3]}" * (1 + number % 2)}
        for number in range(48)
    ]
    write_lines(folder / "prompts.jsonl", pairs)
    return Corpus(folder, folder / "train.jsonl", folder / "prompts.jsonl", folder / "tokenizer")


def write_lines(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def pretrained(corpus, tmp_path_factory) -> Run:
    """NUM_STEPS uninterrupted steps by plain python, saved in the middle and at the end: what other runs must equal."""
    folder = tmp_path_factory.mktemp("pretrained")
    flags = corpus.pretrain_flags(save_dir="run", save_interval=NUM_STEPS // 2)
    return Run(folder / "run", flags, Command("pretrain", flags, folder).run())
