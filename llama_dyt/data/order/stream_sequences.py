"""Documents of a stream as packed sequences, in their order or shuffled in a buffer.

A stream can only be walked: it has no length and no random access. One rule, on which everything else relies: its
tokens are a function of the corpus alone, and a place in it is a document's position and how many of its tokens are
used.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from llama_dyt.core.errors import DataError
from llama_dyt.data.order.packed_sequences import SequencePlace
from llama_dyt.data.order.permutation import Permutation

NO_DOCUMENT = "the dataset holds no document at all (only empty or unusable lines); give one with text in it"

_POSITION = ("epoch", "source", "window", "document", "bad_lines")
"""Keys of the position of a document; `token` beside them counts what of it is dealt out."""


class _Document(NamedTuple):
    """A document's tokens, and the window of documents to be shuffled together in which it lies."""

    epoch: int
    window: int
    start: dict
    tokens: np.ndarray


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


class StreamSequences:
    """Sequences packed from documents that come one after the other.

    Args:
        walk: makes one walk over the documents, from a position or None on: iterates (tokens, position after it), and
            has `bad_lines`, the unusable records passed over so far.
        num_epochs: None for no end.
        shuffle: None for the documents' order, else (how many documents are shuffled together, key of the order).
        state: of earlier ones, perhaps with fewer epochs and of any max_length.

    Shuffled, each `buffer` documents that follow one another are dealt out in an order of their own, while the next as
    many are gathered. A position names the first of them and how many are dealt out, so that resuming reads at most
    `buffer` documents again.
    """

    def __init__(
        self,
        walk,
        max_length: int,
        num_epochs: int | None,
        shuffle: tuple[int, tuple] | None = None,
        state: dict | None = None,
    ):
        state = state or {"epoch": 0, "source": None, "token": 0, "bad_lines": 0}
        self._walk, self._length, self._shuffle = walk, max_length, shuffle
        self._stream = TokenStream({key: state[key] for key in _POSITION if key in state})
        self._documents = self._all_documents(num_epochs, state)
        self._skip = state["token"]
        self._place = (self._stream.place()[0], self._skip)
        self._begun = False

    @property
    def ended(self) -> bool:
        if self._stream.num_tokens < 2:
            self._fill(2)
        return self._stream.num_tokens < 2

    @property
    def num_epochs_done(self) -> int:
        return self._now()[0]["epoch"]

    @property
    def num_bad_lines(self) -> int:
        return self._now()[0]["bad_lines"]

    def _now(self) -> tuple[dict, int]:
        return self._stream.place() if self._begun else self._place

    def _fill(self, num_tokens: int) -> None:
        while self._stream.num_tokens < num_tokens and (document := next(self._documents, None)) is not None:
            self._stream.add(*document, self._skip)
            self._skip, self._begun = 0, True

    def advance(self) -> SequencePlace:
        self._fill(self._length)
        tokens = self._stream.take(self._length)
        return SequencePlace(len(tokens), tokens)

    def read(self, place: SequencePlace) -> np.ndarray:
        return place.where

    def state(self) -> dict:
        position, used = self._now()
        return {**position, "token": used}

    def _all_documents(self, num_epochs: int | None, state: dict) -> Iterator[tuple[np.ndarray, dict]]:
        """(tokens, position after it) of every document still to come; tells the stream where each epoch begins."""
        self._bad_before: dict[int, int] = {}
        walked = self._walked(num_epochs, state)
        epoch = state["epoch"]
        for document, after in walked if self._shuffle is None else self._in_windows(walked, state):
            if document.epoch != epoch:
                epoch = document.epoch
                self._stream.move_end(self._beginning(epoch))
            yield document.tokens, after
        if num_epochs is not None and num_epochs > state["epoch"]:
            self._stream.move_end(self._beginning(num_epochs))

    def _beginning(self, epoch: int) -> dict:
        return {"epoch": epoch, "source": None, "bad_lines": self._bad_before.pop(epoch)}

    def _walked(self, num_epochs: int | None, state: dict) -> Iterator[tuple[_Document, dict]]:
        """Every document still to come in the source's order, epoch after epoch, with the position after it."""
        position, window = state["source"], state.get("window", 0)
        before = state["bad_lines"] - (position or {}).get("bad_lines", 0)
        epoch = state["epoch"]
        while num_epochs is None or epoch < num_epochs:
            walk = self._walk(position)
            start = {"epoch": epoch, "source": position, "bad_lines": before + (position or {}).get("bad_lines", 0)}
            number, after = -1, start
            for number, (tokens, source) in enumerate(walk):
                if self._shuffle is not None and number and number % self._shuffle[0] == 0:
                    start, window = after, window + 1
                after = {"epoch": epoch, "source": source, "bad_lines": before + source["bad_lines"]}
                yield _Document(epoch, window, start, tokens), after
            if number < 0 and position is None:
                raise DataError(NO_DOCUMENT)
            before += walk.bad_lines
            epoch += 1
            self._bad_before[epoch] = before
            position, window = None, 0

    def _in_windows(self, walked: Iterator, state: dict) -> Iterator[tuple[_Document, dict]]:
        """The same documents, each window of them shuffled; the next window is gathered while one is dealt out."""
        _, key = self._shuffle
        upcoming = next(walked, None)
        dealt = state.get("document", 0)
        gathered: list[tuple[_Document, dict]] = []

        def gather(count: float) -> None:
            nonlocal upcoming
            while len(gathered) < count and upcoming is not None:
                if gathered and gathered[0][0].start is not upcoming[0].start:
                    return
                gathered.append(upcoming)
                upcoming = next(walked, None)

        gather(math.inf)
        while gathered:
            present, gathered = gathered, []
            first, behind = present[0][0], present[-1][1]
            order = Permutation(len(present), *key, first.epoch, first.window)(np.arange(len(present))).tolist()
            for number in range(dealt, len(present)):
                gather(number + 1)
                within = {**first.start, "window": first.window, "document": number + 1}
                after = within if number + 1 < len(present) else {**behind, "window": first.window + 1, "document": 0}
                yield present[order[number]][0], after
            gather(math.inf)
            dealt = 0
