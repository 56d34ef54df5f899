"""A source as sequences of one length, packed from its documents; those of prepared tokens, in plain or shuffled order.

The order is that of an endless walk, epoch after epoch, cut every `max_length` tokens; a sequence may begin in one
epoch and end in the next. What is left at the end of the last epoch is one shorter sequence, or nothing when it is a
single token, from which nothing can be learned.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.sources import TokenArray
from llama_dyt.data.order.permutation import Permutation

_BLOCK = 4096
"""Numbers of a computed order asked for at once: single ones would cost a thousand times as much."""


class SequencePlace(NamedTuple):
    """The next sequence: how many tokens it has, and what is needed to read them."""

    num_tokens: int
    where: Any


class PackedSequences(Protocol):
    """A source's sequences, one after the other.

    Attributes:
        ended: whether there is no further sequence.
        num_epochs_done: walks over the source that are wholly dealt out.
        num_bad_lines: unusable records passed over.
    """

    ended: bool
    num_epochs_done: int
    num_bad_lines: int

    def advance(self) -> SequencePlace:
        """Go past the next sequence, without reading it where that can be avoided."""
        ...

    def read(self, place: SequencePlace) -> np.ndarray:
        """Its tokens, int32."""
        ...

    def state(self) -> dict:
        """JSON-able: where the next sequence begins."""
        ...


def num_sequences(num_tokens: int, max_length: int) -> int:
    """Sequences that a number of tokens makes: the last may be shorter, but of one token there is none."""
    num_tokens = max(0, num_tokens)
    return -(-num_tokens // max_length) - (num_tokens % max_length == 1)


class ArraySequences:
    """Sequences of prepared tokens, in their order or permuted anew in each epoch; any of them is read by itself.

    Only sequences that lie in one epoch are permuted; one that runs on into the next comes last in its epoch.

    Args:
        tokens: the corpus.
        num_epochs: None for no end.
        key: seeds the permutation; None leaves the order as it is.
        state: of earlier ones, perhaps with fewer epochs and, unpermuted, of another length.
    """

    num_bad_lines = 0

    def __init__(
        self,
        tokens: TokenArray,
        max_length: int,
        num_epochs: int | None = 1,
        key: tuple | None = None,
        state: dict | None = None,
    ):
        if not tokens.num_tokens:
            raise DataError("the dataset holds no token at all; prepare one with text in it")
        state = state or {"origin": 0, "sequence": 0, "max_length": max_length}
        self._tokens, self._length, self._key = tokens, max_length, key
        self._size = tokens.num_tokens
        self._end = None if num_epochs is None else num_epochs * self._size
        self._origin, self._next = state["origin"], state["sequence"]
        end = state.get("end")  # there, when the last sequence was a shorter one
        if state["max_length"] != max_length:
            if key is not None and end is None:
                raise DataError(
                    f"the checkpoint was reading shuffled sequences of {state['max_length']} tokens, which cannot be "
                    f"gone on with at --max_length {max_length}; give --max_length {state['max_length']}"
                )
            self._origin += state["max_length"] * self._next
            self._next = 0
        if end is not None and (self._next == 0 or self._end is None or self._end > end):
            self._origin, self._next = end, 0  # what was added lies behind that
        self._block = np.empty(0, np.int64)
        self._block_of: tuple[int, int] = (-1, 0)

    def _start(self, number: int) -> int:
        return self._origin + number * self._length

    @property
    def ended(self) -> bool:
        return self._end is not None and self._end - self._start(self._next) < 2

    @property
    def num_epochs_done(self) -> int:
        done = self._start(self._next)
        return (done if self._end is None else min(done, self._end)) // self._size

    def num_sequences_left(self) -> int | None:
        """None for no end."""
        return None if self._end is None else num_sequences(self._end - self._start(self._next), self._length)

    def advance(self) -> SequencePlace:
        start = self._start(self._next)
        num_tokens = self._length if self._end is None else min(self._length, self._end - start)
        start = self._permuted(start)
        self._next += 1
        return SequencePlace(num_tokens, start)

    def _permuted(self, start: int) -> int:
        if self._key is None:
            return start
        epoch = start // self._size
        first = -(-(epoch * self._size - self._origin) // self._length)
        first = max(first, 0)
        whole = ((epoch + 1) * self._size - self._start(first)) // self._length
        number = self._next - first
        if number >= whole:
            return start
        block, within = divmod(number, _BLOCK)
        if self._block_of != (epoch, block):
            order = Permutation(whole, *self._key, epoch)
            self._block = order(np.arange(block * _BLOCK, min(whole, (block + 1) * _BLOCK)))
            self._block_of = (epoch, block)
        return self._start(first + int(self._block[within]))

    def read(self, place: SequencePlace) -> np.ndarray:
        start = place.where % self._size
        return _read(self._tokens, start, start + place.num_tokens, self._size)

    def state(self) -> dict:
        state = {"origin": self._origin, "sequence": self._next, "max_length": self._length}
        if self._end is not None and self._start(self._next) > self._end:
            state["end"] = self._end
        return state


def _read(tokens: TokenArray, start: int, stop: int, size: int) -> np.ndarray:
    if stop <= size:
        return tokens.tokens(start, stop)
    parts = [tokens.tokens(start, size)]
    for begun in range(size, stop, size):
        parts.append(tokens.tokens(0, min(size, stop - begun)))
    return np.concatenate(parts)


class DocumentSequences:
    """Sequences packed from prepared documents in an order permuted anew in each epoch.

    Where documents begin is read for all of them, their tokens only for the sequences that are read.

    Args:
        tokens, num_epochs, state: as in `ArraySequences`; the state is of any max_length.
        key: seeds the permutations.
    """

    num_bad_lines = 0

    def __init__(
        self, tokens: TokenArray, max_length: int, num_epochs: int | None, key: tuple, state: dict | None = None
    ):
        if not tokens.num_tokens:
            raise DataError("the dataset holds no token at all; prepare one with text in it")
        state = state or {"epoch": 0, "document": 0, "token": 0, "dealt": 0}
        self._tokens, self._length, self._key = tokens, max_length, key
        self._end = None if num_epochs is None else num_epochs * tokens.num_tokens
        self._epoch, self._document, self._used = state["epoch"], state["document"], state["token"]
        self._dealt = state["dealt"]
        self._load()

    def _bounds(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(starts, lengths) of the documents at some places of this epoch's order."""
        return document_bounds(self._tokens, Permutation(self._tokens.num_documents, *self._key, self._epoch)(places))

    def _load(self) -> None:
        """The bounds of the block of documents that begins at the present one."""
        self._first = self._document
        stop = min(self._tokens.num_documents, self._first + _BLOCK)
        self._starts, self._lengths = self._bounds(np.arange(self._first, stop))
        self._ends = np.cumsum(self._lengths)

    @property
    def ended(self) -> bool:
        return self._end is not None and self._end - self._dealt < 2

    @property
    def num_epochs_done(self) -> int:
        return self._epoch

    def advance(self) -> SequencePlace:
        wanted = self._length if self._end is None else min(self._length, self._end - self._dealt)
        missing, pieces = wanted, []
        while missing:
            if self._document == self._tokens.num_documents:
                self._epoch, self._document = self._epoch + 1, 0
                self._load()
            elif self._document == self._first + len(self._starts):
                self._load()
            here = self._document - self._first
            begun = int(self._ends[here]) - int(self._lengths[here]) + self._used
            last = int(np.searchsorted(self._ends, begun + missing))  # the document that holds the last missing token
            stops = self._starts[here : last + 1] + self._lengths[here : last + 1]
            starts = self._starts[here : last + 1].copy()
            starts[0] += self._used
            if last < len(self._ends):
                stops[-1] -= int(self._ends[last]) - (begun + missing)
                missing = 0
                self._used = int(stops[-1] - self._starts[last])
                self._document = self._first + last
                if self._used == self._lengths[last]:
                    self._document, self._used = self._document + 1, 0
            else:
                missing -= int(self._ends[-1]) - begun
                self._document, self._used = self._first + len(self._starts), 0
            pieces.append((starts, stops))
        self._dealt += wanted
        if self._document == self._tokens.num_documents:
            self._epoch, self._document = self._epoch + 1, 0
            self._load()
        return SequencePlace(wanted, pieces)

    def num_sequences_left(self) -> int | None:
        """None for no end."""
        return None if self._end is None else num_sequences(self._end - self._dealt, self._length)

    def read(self, place: SequencePlace) -> np.ndarray:
        parts = [
            self._tokens.tokens(start, stop)
            for starts, stops in place.where
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
        ]
        return np.concatenate(parts)

    def state(self) -> dict:
        return {"epoch": self._epoch, "document": self._document, "token": self._used, "dealt": self._dealt}


def document_bounds(tokens: TokenArray, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(starts, lengths) of documents by number, each (documents,) int64."""
    starts = np.empty(len(documents), np.int64)
    stops = np.empty(len(documents), np.int64)
    last = tokens.num_documents - 1
    for i, document in enumerate(documents.tolist()):
        if document == last:
            starts[i], stops[i] = tokens.document_starts(document, document + 1)[0], tokens.num_tokens
        else:
            starts[i], stops[i] = tokens.document_starts(document, document + 2)
    return starts, stops - starts
