"""Which documents are held out for validation: decided by each document's own hash, whatever else is in the corpus.

Its own file because preparing and streaming must agree: a document is on the same side in both, in every epoch, on
every rank, and when the corpus grows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_dyt.data.sources import Source


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to validation.

    Args:
        text: the whole document.
        fraction: share of the documents to hold out, 0 to 1. A document held out at one share is at every greater one.
    """
    digest = hashlib.sha256(b"validation" + text.encode()).digest()
    return int.from_bytes(digest[:4], "big") < fraction * 2**32


class OneSide:
    """The documents of a source that are on one side of the split; itself a Source, with the same positions.

    Args:
        source: documents, or records of several fields, which are held out by all of them together.
        fraction: share that is held out.
        held_out: which side; training and validation with the same fraction share no document and miss none.
    """

    def __init__(self, source: Source, fraction: float, held_out: bool):
        self._source = source
        self._fraction = fraction
        self._held_out = held_out
        self.is_local = source.is_local
        side = "held out" if held_out else "without held out"
        self.fingerprint = f"{source.fingerprint}, {side} {fraction!r}"

    @property
    def bad_lines(self) -> int:
        return self._source.bad_lines

    def iterate(self, position: dict | None = None) -> Iterator[tuple[tuple[str, ...], dict]]:
        for values, after in self._source.iterate(position):
            if is_held_out("\n".join(values), self._fraction) == self._held_out:
                yield values, after

    def problems(self) -> list[str]:
        return self._source.problems()
