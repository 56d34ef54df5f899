"""`-d sample`: a corpus of real text built at once from what the Python interpreter ships, with its own tokenizer.

Sources of the standard library and the topics of `help()`, in RedPajama's form (JSON lines with `text` and `meta`).
Nothing is downloaded; the same interpreter gives the same corpus.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llama_dyt.core import files
from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.sources import SAMPLE_FOLDER
from llama_dyt.data.order.held_out import is_held_out

BUILDER_VERSION = 2
VOCAB_SIZE = 4096
VALIDATION_FRACTION = 0.04
_TOKENIZER_CHARACTERS = 4_000_000  # seen by the tokenizer's training; more makes it slower, not better, at this size
_LEAST_CHARACTERS = 500_000
# Not text to learn from: tests, bundled programs, tables of code points, and files that differ from machine to machine.
_LEFT_OUT = {"test", "tests", "idlelib", "turtledemo", "site-packages", "dist-packages", "encodings", "pydoc_data"}
_LEFT_OUT_PREFIXES = ("_sysconfigdata", "config-")


@dataclass(frozen=True)
class SampleCorpus:
    """Where the built corpus lies.

    Attributes:
        train_glob: pattern of the training files (JSON lines).
        validation_file: held-out documents, none of which is in training.
        tokenizer_folder: HuggingFace tokenizer of VOCAB_SIZE pieces, trained on the training documents.
        tokens_folder: where `sample_tokens.prepare_sample` puts the training documents' tokens.
    """

    folder: Path
    train_glob: str
    validation_file: str
    tokenizer_folder: str
    tokens_folder: str


def build_sample_corpus(folder: str | os.PathLike = SAMPLE_FOLDER) -> SampleCorpus:
    """Builds the corpus below `folder`, or returns the one built before.

    Any number of processes may call this at once: one builds (aside, then renamed), the others wait. A changed builder
    or another Python version builds beside the old one.

    Raises:
        DataError: the folder cannot be written, or this interpreter ships no sources.
    """
    target = Path(folder) / f"v{BUILDER_VERSION}-python{platform.python_version()}"
    corpus = SampleCorpus(
        target,
        train_glob=str(target / "train" / "*.jsonl"),
        validation_file=str(target / "validation" / "validation.jsonl"),
        tokenizer_folder=str(target / "tokenizer"),
        tokens_folder=str(target / "tokens"),
    )
    with building(target):
        if not target.is_dir():
            _build_aside(target)
    return corpus


@contextlib.contextmanager
def building(target: Path) -> Iterator[None]:
    """What makes the folder `target` runs inside: one process at a time, and not at all waited for where it is there.

    Raises:
        DataError: nothing can be written there.
    """
    if target.is_dir():
        yield
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target.with_name(f".{target.name}.lock")):
            yield
    except OSError as error:
        raise DataError(
            f"the sample corpus cannot be built in {target.parent} ({error.strerror or error}); "
            "run from a folder that can be written and has 50 MB free"
        ) from error


def sample_documents() -> Iterator[dict]:
    """The corpus' documents in a fixed order, each {"text": ..., "meta": {...}}; no text comes twice."""
    seen: set[bytes] = set()
    documents = []
    for meta, text in [*_library_sources(), *_help_topics()]:
        digest = hashlib.sha256(text.encode()).digest()
        if text.strip() and digest not in seen:
            seen.add(digest)
            documents.append((digest, {"text": text, "meta": meta}))
    # By hash, so that neighbours are unrelated and any stretch of the stream looks like the whole.
    yield from (document for _, document in sorted(documents, key=lambda pair: pair[0]))


def _library_sources() -> Iterator[tuple[dict, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py"), key=lambda file: file.relative_to(root).as_posix()):
        name = path.relative_to(root)
        if _LEFT_OUT.intersection(name.parts) or any(part.startswith(_LEFT_OUT_PREFIXES) for part in name.parts):
            continue
        with contextlib.suppress(UnicodeDecodeError, OSError):  # a file in another encoding is no loss
            yield {"source": "python-library", "path": name.as_posix()}, path.read_text(encoding="utf-8")


def _help_topics() -> Iterator[tuple[dict, str]]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions package it apart
        return
    for topic in sorted(topics):
        yield {"source": "python-help", "topic": topic}, topics[topic]


def _build_aside(target: Path) -> None:
    from llama_dyt.data.tokenizing.tokenizer import train_sentencepiece

    documents = list(sample_documents())
    if sum(len(document["text"]) for document in documents) < _LEAST_CHARACTERS:
        raise DataError(
            "this Python ships too few of its own sources to build the sample corpus; "
            "install the full standard library, or give another dataset with -d"
        )
    with files.made_whole(target) as aside:
        train = [document for document in documents if not _held_out(document)]
        held_out = [document for document in documents if _held_out(document)]
        _write_lines(aside / "train" / "sample.jsonl", train)
        _write_lines(aside / "validation" / "validation.jsonl", held_out)
        train_sentencepiece(_first_characters(train), aside / "tokenizer", VOCAB_SIZE)


def _held_out(document: dict) -> bool:
    return is_held_out(document["text"], VALIDATION_FRACTION)


def _first_characters(documents: list[dict]) -> Iterator[str]:
    total = 0
    for document in documents:
        yield document["text"]
        total += len(document["text"])
        if total > _TOKENIZER_CHARACTERS:
            return


def _write_lines(path: Path, documents: list[dict]) -> None:
    path.parent.mkdir(parents=True)
    with open(path, "w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps(document, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds an advisory lock, which the system frees even when the holder is killed; without locks, goes on without."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path, "w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
