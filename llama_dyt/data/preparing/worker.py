"""Preparing one part of the text: documents in, tokens out, stretch by stretch into shards. Runs in the workers.

Workers import it, and nothing heavier: no model library, and a tokenizer only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.bad_records import BadRecords
from llama_dyt.data.formats.manifest import SPLITS
from llama_dyt.data.formats.shard_writer import ShardWriter
from llama_dyt.data.formats.sources import ReadOptions, TextSource
from llama_dyt.data.opening import open_text
from llama_dyt.data.order.held_out import is_held_out
from llama_dyt.data.preparing.journal import Entry, Journal
from llama_dyt.data.preparing.parts import Part, bad_records, read_part
from llama_dyt.data.tokenizing.encode import encode_batch, frame_document, make_encoder
from llama_dyt.data.tokenizing.tokenizer import load_tokenizer, tokenizer_fingerprint

# A batch ends at whichever comes first: enough for a tokenizer's threads, little enough memory.
_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 1 << 20
_MOST_DOCUMENTS = 1 << 24  # of a shard, whose index is held in memory until it is written


@dataclass(frozen=True)
class Job:
    """All that a worker must know.

    Attributes:
        output, journal: folders, of the shards and of the entries about them.
        tokenizer: folder; fingerprint: what it must come to.
        bos, eos: ids around each document, or None.
        options: how records are read.
        shard_tokens: a shard ends with the batch that brings it to so many.
        dataset: what is read, where it is no files; None for files.
        num_shares: of such a dataset, each a part; 0 where it has fewer than there are machines, so that its documents
            are dealt out to them one by one.
        progress: file of int64, tokens so far by part.
    """

    output: Path
    journal: Path
    tokenizer: Path
    fingerprint: str
    vocab_size: int
    bos: int | None
    eos: int | None
    validation_fraction: float
    options: ReadOptions
    shard_tokens: int
    rank: int
    world_size: int
    dataset: str | None
    num_shares: int
    progress: Path


@dataclass(frozen=True)
class PartTotal:
    """What a part came to; `truncated` where a document of it was one too many."""

    tokens: int
    truncated: bool


class _Saved:
    """A saved tokenizer without the library around it, which would take each worker seconds and memory to import."""

    is_fast = True

    def __init__(self, file: Path):
        from tokenizers import Tokenizer

        self.backend_tokenizer = Tokenizer.from_file(str(file))


def _load_encoder(job: Job) -> Callable[[Sequence[str]], list[np.ndarray]]:
    file = job.tokenizer / "tokenizer.json"
    if file.is_file():
        saved = _Saved(file)
        if tokenizer_fingerprint(saved) == job.fingerprint:
            return make_encoder(saved.backend_tokenizer)
    tokenizer = load_tokenizer(job.tokenizer)
    if tokenizer_fingerprint(tokenizer) != job.fingerprint:
        raise DataError(f"{job.tokenizer}: the tokenizer has changed since the preparation began; prepare anew")
    return partial(encode_batch, tokenizer)


def make_preparer(job: Job):
    """What handles (part, limit) in a worker: prepares the part up to `limit` tokens (None: all of it)."""
    encode = _load_encoder(job)
    journal = Journal(job.output, job.journal)
    progress = np.memmap(job.progress, np.int64, "r+")
    opened = cache(lambda: open_text(job.dataset, job.options))

    def handle(task: tuple[Part, int | None]) -> PartTotal:
        part, limit = task
        entries = journal.kept(part.number, limit)
        tokens = sum(entry.tokens for entry in entries)
        progress[part.number] = tokens
        if not entries or entries[-1].next is not None:
            for entry in _stretches(job, encode, opened, part, entries, limit, progress):
                journal.add(entry)
                entries.append(entry)
        return PartTotal(sum(entry.tokens for entry in entries), entries[-1].truncated)

    return handle


def _stretches(job: Job, encode, opened, part: Part, done: list[Entry], limit: int | None, progress) -> Iterator[Entry]:
    """What is left of a part, one entry a stretch, its shards written."""
    bad = bad_records(job.options)
    documents = _documents(job, opened, part, done[-1].next if done else None, bad)
    total = sum(entry.tokens for entry in done)
    number, place = len(done), None
    truncated = False
    while not truncated:
        bad_before, empty, tokens, num_documents, ended = bad.count, 0, 0, 0, True
        writers: dict[str, ShardWriter] = {}
        try:
            while batch := list(_take_batch(documents, min(_BATCH_CHARACTERS, job.shard_tokens))):
                texts = [text for text, _ in batch if text]
                place = batch[-1][1]
                framed = [frame_document(ids, job.bos, job.eos) for ids in encode(texts)]
                if limit is not None:
                    allowed = _count_within([len(ids) for ids in framed], limit - total - tokens)
                    truncated = allowed < len(framed)
                    texts, framed = texts[:allowed], framed[:allowed]
                empty += sum(not text for text, _ in batch) + sum(not len(ids) for ids in framed)
                for split, mine in _by_split(texts, framed, job.validation_fraction).items():
                    if split not in writers:
                        name = f"{part.number:06d}_{number:05d}"
                        writers[split] = ShardWriter(job.output, split, name, job.vocab_size)
                    writers[split].write(np.concatenate(mine), [len(ids) for ids in mine])
                tokens += sum(len(ids) for ids in framed)
                num_documents += len(framed)
                progress[part.number] = total + tokens
                if truncated:
                    break
                if tokens >= job.shard_tokens or num_documents >= _MOST_DOCUMENTS:
                    ended = False
                    break
            shards = [writer.finish() for _, writer in sorted(writers.items())]
        finally:
            for writer in writers.values():
                writer.discard()
        after = None if ended or truncated else place
        yield Entry(part.number, number, shards, tokens, bad.count - bad_before, empty, after, truncated)
        if after is None:
            return
        total += tokens
        number += 1


def _documents(
    job: Job, opened: Callable[[], TextSource], part: Part, place: Any, bad: BadRecords
) -> Iterator[tuple[str, Any]]:
    if job.dataset is None:
        yield from read_part(part, place, job.options, bad)
        return
    source = opened()
    if job.num_shares:
        source = source.share(part.number, job.num_shares)
    already = (place or {}).get("bad_lines", 0)
    for values, after in source.iterate(place):
        bad.count = source.bad_lines - already
        if job.num_shares or (after["row"] - 1) % job.world_size == job.rank:
            yield values[0], after


def _take_batch(documents: Iterator[tuple[str, Any]], most: int) -> Iterator[tuple[str, Any]]:
    characters = 0
    for document in islice(documents, _BATCH_DOCUMENTS):
        yield document
        characters += len(document[0])
        if characters >= most:
            return


def _count_within(lengths: list[int], allowed: int) -> int:
    """How many of the documents, from the first on, have together at most `allowed` tokens."""
    for count, length in enumerate(lengths):
        allowed -= length
        if allowed < 0:
            return count
    return len(lengths)


def _by_split(texts: list[str], framed: list[np.ndarray], fraction: float) -> dict[str, list[np.ndarray]]:
    found: dict[str, list[np.ndarray]] = {}
    train, validation = SPLITS
    for text, ids in zip(texts, framed, strict=True):
        if len(ids):
            split = validation if fraction and is_held_out(text, fraction) else train
            found.setdefault(split, []).append(ids)
    return found
