"""A walk over documents as token ids with a position after each: text is tokenized ahead, in worker processes.

Reading files has positions; workers see lines only. Here the two meet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import islice
from typing import Any

import numpy as np

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.file_source import place_of
from llama_dyt.data.formats.record_files import Place
from llama_dyt.data.formats.sources import TextSource, TokenDocuments
from llama_dyt.data.tokenizing.encode import (
    EncodedTexts,
    Lines,
    frame_document,
    make_text_encoder,
    tokenizer_for_workers,
)
from llama_dyt.data.tokenizing.workers import Workers

# A batch of texts ends at whichever comes first: enough for the tokenizer's threads, little enough memory.
_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 1 << 18
_AHEAD = 4
"""Tasks a worker has before their turn, done or not: a quarter of a megabyte of text each."""


def start_workers(tokenizer, num_workers: int, held_out_fraction: float | None = None) -> Workers:
    """Workers that encode text; with 0 it is done in the process and thread that asks."""
    kind, made = tokenizer_for_workers(tokenizer) if num_workers else ("object", tokenizer)
    setup = (kind, made, tokenizer.bos_token_id, tokenizer.eos_token_id, held_out_fraction)
    return Workers(make_text_encoder, *setup, count=num_workers)


class EncodedWalk:
    """One walk over a text source: iterates (tokens with BOS and EOS, position after the document).

    Args:
        source: documents without text are passed over.
        workers: of `start_workers`.
        num_workers: how many they are.
        position: where to begin; None for the start.

    Attributes:
        bad_lines: unusable records passed over so far.
    """

    def __init__(self, source: TextSource, workers: Workers, num_workers: int, position: dict | None = None):
        self._source = source
        self._workers = workers
        self._most = max(1, _AHEAD * num_workers)
        self._position = position
        self.bad_lines = position["bad_lines"] if position else 0

    def __iter__(self) -> Iterator[tuple[np.ndarray, dict]]:
        blocks = self._source.line_blocks(self._position)
        if blocks is None:
            yield from self._of_texts()
        else:
            yield from self._of_lines(blocks)

    def _of_texts(self) -> Iterator[tuple[np.ndarray, dict]]:
        records = self._source.iterate(self._position)
        tasks = (([text for text, _ in batch], [after for _, after in batch]) for batch in _batches(records))
        for encoded, places in self._ahead(tasks):
            for number, tokens in zip(encoded.numbers.tolist(), _documents(encoded), strict=True):
                self.bad_lines = places[number]["bad_lines"]
                yield tokens, places[number]
        self.bad_lines = self._source.bad_lines

    def _of_lines(self, blocks: Iterator) -> Iterator[tuple[np.ndarray, dict]]:
        line = 1
        (field,) = self._source.fields
        tasks = ((Lines(block, field), (file, place)) for file, place, block in blocks)
        for encoded, (file, place) in self._ahead(tasks):
            line = place.line or line
            bad = deque(encoded.bad)
            rows = zip(encoded.numbers.tolist(), encoded.ends.tolist(), _documents(encoded), strict=True)
            for number, end, tokens in rows:
                while bad and bad[0][0] < number:
                    self._bad(file, line, *bad.popleft())
                after = Place(place.offset + end, line + number + 1, place.frame)
                yield tokens, place_of(file, after, self.bad_lines)
            while bad:
                self._bad(file, line, *bad.popleft())
            line += encoded.num_lines

    def _bad(self, file, line: int, number: int, reason: str) -> None:
        self._source.refuse(file.path, f"line {line + number}", reason)
        self.bad_lines += 1

    def _ahead(self, tasks: Iterator[tuple[Any, Any]]) -> Iterator[tuple[EncodedTexts, Any]]:
        """(result, note) of each (task, note), in order; an error in reading comes after what was read before it."""
        waiting: deque[tuple[Future, Any]] = deque()
        failure = None
        while True:
            try:
                while failure is None and len(waiting) < self._most:
                    task, note = next(tasks)
                    waiting.append((self._workers.submit(task), note))
            except StopIteration:
                failure = _END
            except DataError as error:
                failure = error
            if not waiting:
                break
            future, note = waiting.popleft()
            yield future.result(), note
        if failure is not _END:
            raise failure


class FramedWalk:
    """One walk over documents that are tokenized already; as `EncodedWalk`."""

    def __init__(self, stream: TokenDocuments, bos: int | None, eos: int, position: dict | None = None):
        self._documents = stream.documents(position)
        self._frame = bos, eos
        self.bad_lines = position["bad_lines"] if position else 0

    def __iter__(self) -> Iterator[tuple[np.ndarray, dict]]:
        for ids, after in self._documents:
            self.bad_lines = after["bad_lines"]
            yield frame_document(ids, *self._frame), after


_END = DataError("the end of the records")


def _documents(encoded: EncodedTexts) -> Iterator[np.ndarray]:
    start = 0
    for stop in encoded.stops.tolist():
        yield encoded.tokens[start:stop]
        start = stop


def _batches(records: Iterator) -> Iterator[list[tuple[str, dict]]]:
    """Lists of (text, position after it)."""
    while True:
        batch: list[tuple[str, dict]] = []
        characters = 0
        try:
            for values, after in islice(records, _BATCH_DOCUMENTS):
                batch.append((values[0], after))
                characters += len(values[0])
                if characters >= _BATCH_CHARACTERS:
                    break
        except DataError:
            if batch:
                yield batch
            raise
        if not batch:
            return
        yield batch
