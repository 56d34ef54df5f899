"""Encoding a long document in pieces: a tokenizer holds hundreds of bytes for every character given to it at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np

LONG_CHARACTERS = 1 << 18
_AT_ONCE = 8
_BEFORE = "\n"


def cut_text(text: str, longest: int) -> Iterator[str]:
    """Pieces of at most `longest` characters which are the text one after the other.

    Cut is behind a line end that stands alone between two visible characters, else before such a space, both looked
    for in the last quarter of a piece: tokenizers of LLaMA's and GPT-2's kinds join nothing across these. Where there
    is none, as in a line of digits without a space, it is where the piece is full, and tokens around it may differ.
    """
    start = 0
    while len(text) - start > longest:
        least, most = start + longest * 3 // 4, start + longest
        stop = _find_alone(text, "\n", least, most - 1)
        stop = stop + 1 if stop is not None else _find_alone(text, " ", least, most)
        stop = most if stop is None else stop
        yield text[start:stop]
        start = stop
    yield text[start:]


def _find_alone(text: str, character: str, least: int, most: int) -> int | None:
    """The last place in [least, most) where a character stands between two that are no white space."""
    place = text.rfind(character, least, most)
    while place >= 0:
        if not text[place - 1].isspace() and place + 1 < len(text) and not text[place + 1].isspace():
            return place
        place = text.rfind(character, least, place)
    return None


def encode_all(encode: Callable[[Sequence[str]], list[np.ndarray]], texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each text, int32; those of more than LONG_CHARACTERS in pieces.

    Args:
        encode: texts to their ids.
    """
    at_once = [text for text in texts if len(text) <= LONG_CHARACTERS]
    short = iter(encode(at_once) if at_once else [])
    return [
        next(short) if len(text) <= LONG_CHARACTERS else encode_in_pieces(encode, text, LONG_CHARACTERS)
        for text in texts
    ]


def encode_in_pieces(
    encode: Callable[[Sequence[str]], list[np.ndarray]], text: str, longest: int = LONG_CHARACTERS
) -> np.ndarray:
    """Token ids of a text, int32, from those of its pieces.

    Args:
        encode: texts, each at most `longest` + 1 characters long, to their ids.
    """
    # A piece in the middle must not be taken for the beginning of a text, where some tokenizers add a space: it is
    # encoded behind a line end, whose own tokens are then taken away.
    before = encode([_BEFORE])[0]
    pieces = cut_text(text, longest)
    parts = [encode([next(pieces)])[0]]
    while batch := list(islice(pieces, _AT_ONCE)):
        for piece, ids in zip(batch, encode([_BEFORE + piece for piece in batch]), strict=True):
            if np.array_equal(ids[: len(before)], before):
                parts.append(ids[len(before) :])
            else:
                parts.append(encode([piece])[0])
    return np.concatenate(parts)
