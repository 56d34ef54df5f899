"""Text to token ids, without special tokens: a few texts at once, or what a worker process does with lines of JSON.

A worker imports it, so it needs neither torch nor transformers.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from llama_dyt.data.formats.lines import is_blank, parse_json_line
from llama_dyt.data.formats.record_files import TextFields
from llama_dyt.data.order.held_out import is_held_out
from llama_dyt.data.tokenizing.long_text import encode_all
from llama_dyt.data.tokenizing.word_encoder import make_word_encoder


def frame_document(ids: np.ndarray, bos: int | None, eos: int | None) -> np.ndarray:
    """[BOS] + ids + [EOS], int32; None leaves one out."""
    head, tail = ([] if token is None else [token] for token in (bos, eos))
    return np.concatenate((np.array(head, np.int32), ids, np.array(tail, np.int32)))


def encode_batch(tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each text, int32, without special tokens: neither added nor recognised in the text.

    A very long text is encoded in pieces, see `long_text`.
    """
    return encode_all(lambda some: _encode_whole(tokenizer, some), texts)


def _encode_whole(tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    if tokenizer.is_fast:
        # The backend itself: a BatchEncoding would copy masks and offsets that nobody reads, at half the speed.
        return encode_with_backend(tokenizer.backend_tokenizer, texts)
    ids = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False)
    return [np.array(row, dtype=np.int32) for row in ids["input_ids"]]


def make_encoder(backend: Any) -> Callable[[Sequence[str]], list[np.ndarray]]:
    """As `encode_batch` of a tokenizer with this `tokenizers.Tokenizer`, and where possible much faster."""
    encode = make_word_encoder(backend)
    if encode is None:
        return partial(encode_all, partial(encode_with_backend, backend))
    return partial(encode_all, lambda texts: [encode(text) for text in texts])


def encode_with_backend(backend: Any, texts: Sequence[str], *, special_tokens: bool = False) -> list[np.ndarray]:
    """Token ids of each text, int32, by a `tokenizers.Tokenizer`.

    No special tokens are added, and those written in a text are recognised only with `special_tokens`.
    """
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = not special_tokens
    encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]


@dataclass(frozen=True)
class Lines:
    """Whole JSON lines and the field of them that is meant."""

    data: bytes
    field: str


Task = Lines | Sequence[str]


@dataclass(frozen=True)
class EncodedTexts:
    """The documents of one task, in their order; those without text, and those held out, are left out.

    Attributes:
        tokens: [BOS] + ids + [EOS] of all documents, one after the other, int32.
        stops: where each document's tokens end, (documents,) int64.
        numbers: which text of the task each document was, or the number of its line, from 0, (documents,) int64.
        ends: for lines: the byte behind each document's line, (documents,) int64.
        num_lines: lines of the task; 0 for texts.
        bad: (line number from 0, reason) of lines that cannot be used.
    """

    tokens: np.ndarray
    stops: np.ndarray
    numbers: np.ndarray
    ends: np.ndarray
    num_lines: int
    bad: list[tuple[int, str]]


def tokenizer_for_workers(tokenizer) -> tuple[str, Any]:
    """What `make_text_encoder` makes a tokenizer of in another process: a fast one's JSON, else the thing itself."""
    if not tokenizer.is_fast:
        return "object", tokenizer
    # Only what encoding into ids needs: the post-processor, which adds special tokens, is not asked for any.
    return "json", json.dumps({**json.loads(tokenizer.backend_tokenizer.to_str()), "post_processor": None})


def make_text_encoder(
    kind: str, tokenizer: Any, bos: int | None, eos: int, held_out_fraction: float | None = None
) -> Callable[[Task], EncodedTexts]:
    """The function that a worker runs.

    Args:
        kind, tokenizer: of `tokenizer_for_workers`; or "object" and the tokenizer, in the same process.
        bos, eos: ids that open and end each document; None for no BOS.
        held_out_fraction: documents that validation holds out at this share (see `split`) are left out here.
    """
    encode = _encoder(kind, tokenizer)
    head = [] if bos is None else [bos]

    def handle(task: Task) -> EncodedTexts:
        bad: list[tuple[int, str]] = []
        num_lines = 0
        if isinstance(task, Lines):
            texts, numbers, ends, num_lines = _parse(task, bad)
        else:
            texts, numbers, ends = list(task), list(range(len(task))), []
        kept = [
            i
            for i, text in enumerate(texts)
            if text and not (held_out_fraction and is_held_out(text, held_out_fraction))
        ]
        ids = encode([texts[i] for i in kept])
        stops = np.cumsum([len(row) + len(head) + 1 for row in ids], dtype=np.int64)
        tokens = np.empty(int(stops[-1]) if len(ids) else 0, np.int32)
        start = 0
        for row, stop in zip(ids, stops, strict=True):
            tokens[start : start + len(head)] = head
            tokens[start + len(head) : stop - 1] = row
            tokens[stop - 1] = eos
            start = stop
        pick = np.array(kept, np.int64)
        lines_end = np.array(ends, np.int64)[pick] if ends else np.empty(0, np.int64)
        return EncodedTexts(tokens, stops, np.array(numbers, np.int64)[pick], lines_end, num_lines, bad)

    return handle


def _encoder(kind: str, tokenizer: Any) -> Callable[[Sequence[str]], list]:
    if kind == "json":
        from tokenizers import Tokenizer

        return make_encoder(Tokenizer.from_str(tokenizer))
    return lambda texts: encode_batch(tokenizer, texts)


def _parse(lines: Lines, bad: list[tuple[int, str]]) -> tuple[list[str], list[int], list[int], int]:
    """(texts, their line numbers from 0, the byte behind each, lines in all)."""
    texts, numbers, ends = [], [], []
    reader = TextFields((lines.field,))
    end, number = 0, -1
    for number, line in enumerate(io.BytesIO(lines.data)):
        end += len(line)
        if is_blank(line):
            continue
        values = parse_json_line(line, reader)
        if isinstance(values, str):
            bad.append((number, values))
        else:
            texts.append(values[0])
            numbers.append(number)
            ends.append(end)
    return texts, numbers, ends, number + 1
