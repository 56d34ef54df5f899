"""Tokenized text as one long array of tokens with documents in it: what every random-access source looks like.

Its own file because the readers of several formats offer it and whoever cuts sequences asks for nothing more.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np


class TokenArray(Protocol):
    """All tokens of a prepared corpus in their order, nothing of which is held in memory.

    Attributes:
        num_tokens: BOS and EOS of every document included.
        num_documents: each is a stretch of tokens; one after the other they are the whole array.
        fingerprint: changes when the tokens could have; a position belongs to one fingerprint.
        tokenizer: `tokenizer.tokenizer_fingerprint` of the tokenizer that made it; None where the format does not say.
        vocab_size: every token is below it; None where the format does not say.
    """

    num_tokens: int
    num_documents: int
    fingerprint: str
    tokenizer: str | None
    vocab_size: int | None

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens number `start` to `stop` - 1, int32, a copy."""
        ...

    def document_starts(self, first: int, last: int) -> np.ndarray:
        """Where documents number `first` to `last` - 1 begin, int64; one past the last begins at num_tokens."""
        ...
