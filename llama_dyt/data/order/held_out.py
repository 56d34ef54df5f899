"""Which documents are held out for validation: decided by each document's own hash, whatever else is in the corpus.

Preparing and streaming agree in it: a document is on the same side in both, in every epoch, on
every rank, and when the corpus grows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.sources import TextSource


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to validation.

    Args:
        text: the whole document.
        fraction: share of the documents to hold out, 0 to 1. A document held out at one share is at every greater one.
    """
    digest = hashlib.sha256(b"validation" + text.encode()).digest()
    return int.from_bytes(digest[:4], "big") < fraction * 2**32


class OneSide(TextSource):
    """The documents of a source that are on one side of the split, with the same positions.

    Args:
        source: documents, or records whose first field is a prompt: records of one prompt are on one side, so that no
            validation set asks what training has answered.
        fraction: share that is held out.
        held_out: which side; training and validation with the same fraction share no document and miss none.

    Attributes:
        former_fingerprint: of what stood here when prompts could be on both sides; None where that is nothing else.
    """

    def __init__(self, source: TextSource, fraction: float, held_out: bool):
        self._source = source
        self._fraction = fraction
        self._held_out = held_out
        self.is_local = source.is_local
        side = "held out" if held_out else "without held out"
        self.fingerprint = f"{source.fingerprint}, {side} {fraction!r}"
        self.fields = source.fields
        self._of_prompts = len(source.fields) > 1
        if self._of_prompts:
            self.former_fingerprint = self.fingerprint
            self.fingerprint += " of the prompts"

    @property
    def bad_lines(self) -> int:
        return self._source.bad_lines

    def iterate(self, position: dict | None = None) -> Iterator[tuple[tuple[str, ...], dict]]:
        for values, after in self._source.iterate(position):
            text = values[0].strip() if self._of_prompts else values[0]
            if is_held_out(text, self._fraction) == self._held_out:
                yield values, after

    def problems(self) -> list[DataError]:
        return self._source.problems()
