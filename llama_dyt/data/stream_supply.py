"""Documents of a stream as a supply of sequences: packed in their order, or shuffled in a buffer.

Its own file because a stream can only be walked: it has no length and no random access, and its position is a document.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from llama_dyt.data.packing import TokenStream
from llama_dyt.data.permutation import Permutation
from llama_dyt.data.sequences import Sequence
from llama_dyt.errors import DataError

NO_DOCUMENT = "the dataset holds no document at all (only empty or unusable lines); give one with text in it"

_POSITION = ("epoch", "source", "window", "document", "bad_lines")
"""Keys of the position of a document; `token` beside them counts what of it is dealt out."""


class StreamSupply:
    """Sequences packed from documents that come one after the other.

    Args:
        walk: makes one walk over the documents, from a position or None on: iterates (tokens, position after it), and
            has `bad_lines`, the unusable records passed over so far.
        num_epochs: None for no end.
        shuffle: None for the documents' order, else (how many documents are shuffled together, key of the order).
        state: of an earlier supply, perhaps with fewer epochs and of any max_length.

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

    def advance(self) -> Sequence:
        self._fill(self._length)
        tokens = self._stream.take(self._length)
        return Sequence(len(tokens), tokens)

    def read(self, sequence: Sequence) -> np.ndarray:
        return sequence.where

    def state(self) -> dict:
        position, used = self._now()
        return {**position, "token": used}

    def _all_documents(self, num_epochs: int | None, state: dict) -> Iterator[tuple[np.ndarray, dict]]:
        """(tokens, position after it) of every document still to come; tells the stream where each epoch begins."""
        position, dealt, window = state["source"], state.get("document", 0), state.get("window", 0)
        before = state["bad_lines"] - (position or {}).get("bad_lines", 0)
        epoch = state["epoch"]
        while num_epochs is None or epoch < num_epochs:
            walk = self._walk(position)
            documents = (
                self._in_order(walk, epoch)
                if self._shuffle is None
                else (self._in_windows(walk, epoch, position, window, dealt))
            )
            empty = position is None
            for tokens, after in documents:
                empty = False
                yield tokens, {**after, "bad_lines": before + (after["source"] or {}).get("bad_lines", 0)}
            if empty:
                raise DataError(NO_DOCUMENT)
            before += walk.bad_lines
            epoch += 1
            self._stream.move_end({"epoch": epoch, "source": None, "bad_lines": before})
            position, dealt, window = None, 0, 0

    def _in_order(self, walk: Iterable, epoch: int) -> Iterator[tuple[np.ndarray, dict]]:
        for tokens, after in walk:
            yield tokens, {"epoch": epoch, "source": after}

    def _in_windows(
        self, walk: Iterable, epoch: int, start: dict | None, window: int, dealt: int
    ) -> Iterator[tuple[np.ndarray, dict]]:
        buffer, key = self._shuffle
        documents = iter(walk)
        gathered: list[tuple[np.ndarray, dict]] = []
        _gather(documents, gathered, buffer)
        while gathered:
            present, gathered = gathered, []
            order = Permutation(len(present), *key, epoch, window)(np.arange(len(present))).tolist()
            after_all = {"epoch": epoch, "source": present[-1][1], "window": window + 1, "document": 0}
            for number in range(dealt, len(present)):
                tokens = present[order[number]][0]
                _gather(documents, gathered, number + 1)
                last = number + 1 == len(present)
                within = {"epoch": epoch, "source": start, "window": window, "document": number + 1}
                yield tokens, after_all if last else within
            _gather(documents, gathered, buffer)
            start, window, dealt = after_all["source"], window + 1, 0


def _gather(documents: Iterator, gathered: list, count: int) -> None:
    while len(gathered) < count and (document := next(documents, None)) is not None:
        gathered.append(document)
