"""What the data benchmarks share: a corpus of real text and a tokenizer for it; the rest is `benchmarks/common.py`'s.

Nothing is downloaded: the text is the Python library's, as in `-d sample`, repeated with a line of its own before each
document, so that no document comes twice.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import common as shared
from benchmarks.common import MEGABYTE, REPOSITORY, in_a_process_of_its_own, median_of

__all__ = [
    "MEGABYTE",
    "REPOSITORY",
    "arguments",
    "in_a_process_of_its_own",
    "make_corpus",
    "make_tokenizer",
    "median_of",
    "with_speed",
    "write_report",
]

VOCAB_SIZE = 32000
FILES = 8
CHARACTERS_A_PIECE = 300
PACKAGES = ("numpy", "pyarrow", "tokenizers", "transformers")


def arguments(description: str, **flags: Any) -> argparse.ArgumentParser:
    return shared.arguments(description, work=True, **flags)


def make_corpus(work: Path, megabytes: int) -> Path:
    """A folder of FILES .jsonl files with about `megabytes` of text, made once."""
    from llama_dyt.data.sample import sample_documents

    folder = work / f"corpus_{megabytes}mb"
    if folder.is_dir():
        return folder
    texts = [document["text"] for document in sample_documents()]
    aside = folder.with_name(f"{folder.name}.tmp")
    aside.mkdir(parents=True, exist_ok=True)
    files = [open(aside / f"{number}.jsonl", "w", encoding="utf-8") for number in range(FILES)]  # noqa: SIM115
    written = number = 0
    while written < megabytes * MEGABYTE:
        text = f"# document {number}\n{texts[number % len(texts)]}"
        line = json.dumps({"text": text}) + "\n"
        files[number % FILES].write(line)
        written += len(line)
        number += 1
    for file in files:
        file.close()
    os.rename(aside, folder)
    return folder


def make_tokenizer(work: Path, vocab_size: int = VOCAB_SIZE) -> Path:
    """A folder with a SentencePiece tokenizer of LLaMA's kind trained on the text, made once."""
    from llama_dyt.data.sample import sample_documents
    from llama_dyt.data.tokenizing.tokenizer import train_sentencepiece

    folder = work / f"tokenizer_{vocab_size}"
    if not folder.is_dir():
        texts = "".join(document["text"] for document in sample_documents())
        train_sentencepiece([texts[: CHARACTERS_A_PIECE * vocab_size]], folder, vocab_size)
    return folder


def with_speed(side: str, row: dict[str, Any]) -> dict[str, Any]:
    """A measurement with its tokens a second: of the clock, and of the cores, which other programs disturb less."""
    speed = {"tokens_per_second": row["tokens"] / row["seconds"]}
    return {"side": side, **row, **speed, "tokens_per_cpu_second": row["tokens"] / row["cpu_seconds"]}


def write_report(name: str, results: Path, rows: list[dict[str, Any]], summary: dict[str, Any]) -> Path:
    return shared.write_report(f"data-{name}", results, rows, summary, PACKAGES)
