"""What a finished model's predictions of a dataset are worth: loss, perplexity, bits per byte."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.sources import Source, TextSource
from llama_dyt.data.tokenizing.encode import encode_batch, frame_document
from llama_dyt.training.evaluation.baselines import bits_per_byte
from llama_dyt.training.evaluation.windows import Window, cut, loss_on

DOCUMENTS, STREAM, SLIDING = "documents", "stream", "sliding"
WAYS = (DOCUMENTS, STREAM, SLIDING)
"""How text is cut: each document by itself, all laid end to end, or that with windows that overlap."""

_BATCH_DOCUMENTS = 64
_LARGEST_EXPONENT = 700.0  # exp of more is no float


@dataclass(frozen=True)
class Windows:
    """How tokens are cut into what the model sees at once.

    Attributes:
        way: one of WAYS.
        max_length: tokens of a window.
        stride: new predictions of a window, of SLIDING.
    """

    way: str = DOCUMENTS
    max_length: int = 2048
    stride: int = 512

    def __str__(self) -> str:
        if self.way == SLIDING:
            return f"sliding windows of {self.max_length} tokens, {self.stride} new ones each"
        what = "each document by itself, in" if self.way == DOCUMENTS else "documents end to end, in"
        return f"{what} windows of {self.max_length} tokens"


@dataclass(frozen=True)
class Limits:
    """How much of a dataset is scored; None is all."""

    documents: int | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Score:
    """
    Attributes:
        loss: mean over predicted tokens, nats.
        num_tokens: of the text with each document's EOS, without BOS; the loss is charged for all of them.
        num_bytes: of the text in UTF-8; None where there are only tokens.
        num_documents: how many were scored.
    """

    loss: float
    num_tokens: int
    num_bytes: int | None
    num_documents: int

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, _LARGEST_EXPONENT))

    @property
    def bits_per_byte(self) -> float | None:
        return None if self.num_bytes is None else bits_per_byte(self.loss, self.num_tokens, self.num_bytes)

    def as_record(self) -> dict[str, float | int | None]:
        return {
            "loss": self.loss,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "tokens": self.num_tokens,
            "bytes": self.num_bytes,
            "documents": self.num_documents,
        }


def score(
    model: Any, tokenizer: Any, source: Source, windows: Windows, limits: Limits | None = None, batch_size: int = 8
) -> Score:
    """Score a model on a dataset.

    Raises:
        DataError: the dataset has no document with text in it, or one that cannot be used.
    """
    documents, num_bytes = [], 0
    for ids, size in _documents(source, tokenizer, limits or Limits()):
        documents.append(ids)
        num_bytes += size
    if not documents:
        raise DataError("no document with text in it to score; give a dataset that has some")
    bos = tokenizer.bos_token_id
    found = loss_on(model, list(_cut(documents, windows)), bos, batch_size)
    if not found.count:
        raise DataError("not one token to predict; give a dataset with more text")
    num_tokens = sum(int((ids != bos).sum()) for ids in documents) if bos is not None else sum(map(len, documents))
    return Score(found.mean, num_tokens, None if source.is_tokenized else num_bytes, len(documents))


def _cut(documents: Sequence[np.ndarray], windows: Windows) -> Iterator[Window]:
    stride = windows.stride if windows.way == SLIDING else None
    if windows.way != DOCUMENTS:
        yield from cut(np.concatenate(documents), windows.max_length, stride)
        return
    # Of one length together: they are batched so, and every sum is the same in any order but for rounding.
    yield from sorted(
        (window for ids in documents for window in cut(ids, windows.max_length)), key=lambda window: len(window.tokens)
    )


def _documents(source: Source, tokenizer: Any, limits: Limits) -> Iterator[tuple[np.ndarray, int]]:
    """(ids with BOS and EOS, int64; bytes of the text) of the first documents; empty ones are passed over."""
    number = size = 0
    walk = _tokens_of(source) if source.is_tokenized else _texts(source, tokenizer)
    for ids, length in walk:
        if (limits.documents is not None and number >= limits.documents) or (
            limits.bytes is not None and size >= limits.bytes
        ):
            return
        number, size = number + 1, size + length
        yield ids.astype(np.int64), length


def _texts(source: TextSource, tokenizer: Any) -> Iterator[tuple[np.ndarray, int]]:
    batch: list[str] = []

    def encoded() -> Iterator[tuple[np.ndarray, int]]:
        for text, ids in zip(batch, encode_batch(tokenizer, batch), strict=True):
            yield frame_document(ids, tokenizer.bos_token_id, tokenizer.eos_token_id), len(text.encode())
        batch.clear()

    for values, _ in source.iterate():
        if values[0]:
            batch.append(values[0])
        if len(batch) == _BATCH_DOCUMENTS:
            yield from encoded()
    yield from encoded()


def _tokens_of(source: Any) -> Iterator[tuple[np.ndarray, int]]:
    """Of prepared tokens: BOS and EOS are there, and each token counts as a byte for --max_bytes."""
    if not source.has_random_access:
        raise DataError(
            "tokens that can only be walked are not scored; give the text, or prepare it with prepare_data.py"
        )
    for number in range(source.num_documents):
        start = int(source.document_starts(number, number + 1)[0])
        last = number + 1 == source.num_documents
        stop = source.num_tokens if last else int(source.document_starts(number + 1, number + 2)[0])
        yield source.tokens(start, stop), stop - start
