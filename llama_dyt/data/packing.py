"""Packing: documents, each [BOS] + ids + [EOS], laid end to end and cut into sequences of `max_length` tokens.

Its own file because it is pure arithmetic on arrays, with the one rule everything else relies on: the stream of tokens
is a function of the corpus alone, and a place in it is a document's position and how many of its tokens are used.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from llama_dyt.data.step import IGNORED


def frame_document(ids: np.ndarray, bos: int | None, eos: int) -> np.ndarray:
    """[BOS] + ids + [EOS], int32; without BOS where the tokenizer has none."""
    head = [] if bos is None else [bos]
    return np.concatenate((np.array(head, np.int32), ids, np.array([eos], np.int32)))


class TokenStream:
    """A queue of documents' tokens that knows, for its next token, the document it lies in.

    Args:
        start: the position of the first document to be added.
    """

    def __init__(self, start: dict):
        self._documents: deque[tuple[np.ndarray, dict]] = deque()
        self._used = 0  # tokens of the first document already taken
        self._end = start
        self.num_tokens = 0

    def add(self, tokens: np.ndarray, after: dict, skip: int = 0) -> None:
        """Appends a document. `after` is the position of the document behind it; `skip` tokens were used before."""
        self._documents.append((tokens, self._end))
        self._end = after
        self.num_tokens += len(tokens) - skip
        if skip:
            self._used = skip

    def move_end(self, position: dict) -> None:
        """Replaces the position of the next document to be added (a new epoch begins there)."""
        self._end = position

    def take(self, count: int) -> np.ndarray:
        """Removes and returns the next `count` tokens, int32; fewer when there are not as many."""
        parts = []
        while count and self._documents:
            tokens, _ = self._documents[0]
            part = tokens[self._used : self._used + count]
            parts.append(part)
            count -= len(part)
            self._used += len(part)
            self.num_tokens -= len(part)
            if self._used == len(tokens):
                self._documents.popleft()
                self._used = 0
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    def place(self) -> tuple[dict, int]:
        """The position of the document in which the next token lies, and how many of its tokens are used."""
        return (self._documents[0][1], self._used) if self._documents else (self._end, 0)


def cut_sequences(tokens: np.ndarray, num_sequences: int, max_length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts tokens into (num_sequences, max_length) input_ids and labels; what is missing is `pad` with labels -100."""
    size = num_sequences * max_length
    input_ids = np.full(size, pad, np.int32)
    labels = np.full(size, IGNORED, np.int32)
    input_ids[: len(tokens)] = labels[: len(tokens)] = tokens
    return input_ids.reshape(num_sequences, max_length), labels.reshape(num_sequences, max_length)


def num_label_tokens(num_tokens: int, max_length: int) -> int:
    """Targets among `num_tokens` tokens cut into sequences: all but the first of each, which nothing precedes."""
    return num_tokens - -(-num_tokens // max_length)
