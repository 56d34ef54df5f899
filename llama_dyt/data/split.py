"""Which documents are held out for validation: decided by each document's own hash, whatever else is in the corpus.

Its own file because preparing and streaming must agree: a document is on the same side in both, in every epoch, on
every rank, and when the corpus grows.
"""

from __future__ import annotations

import hashlib


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to validation.

    Args:
        text: the whole document.
        fraction: share of the documents to hold out, 0 to 1. A document held out at one share is at every greater one.
    """
    digest = hashlib.sha256(b"validation" + text.encode()).digest()
    return int.from_bytes(digest[:4], "big") < fraction * 2**32
