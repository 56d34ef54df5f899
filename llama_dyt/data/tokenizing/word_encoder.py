"""Encoding a SentencePiece-like tokenizer's text word by word, with the ids of words seen before at hand.

It rests on an argument about one kind of model: BPE only ever puts neighbouring pieces together into
the results of its merges, so where no such result has two characters side by side, nothing is joined between them, and
a text may be cut there. What is cut comes again and again, and looking it up is many times faster than merging.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np

_MARK = "\u2581"  # SentencePiece's mark of a space
_CUTS = (
    # Letters, digits and all else apart, as SentencePiece trains by default: `split_by_unicode_script`, `split_digits`.
    re.compile(r" *(?:[^\W\d_]+|\d|(?:[^\w ]|_)+)| +"),
    # Words of whatever a space stands before.
    re.compile(" *[^ ]+| +"),
)
"""The finest first. Whether one cuts between two characters depends on these two alone."""
_PARTS = {
    "version",
    "truncation",
    "padding",
    "added_tokens",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "model",
}
_MODEL_PARTS = {
    "type",
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
    "vocab",
    "merges",
}
_METASPACE_PARTS = {"type", "replacement", "prepend_scheme", "split"}
"""What a tokenizer.json is known to say; anything else may change what is encoded."""
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_MOST_WORDS = 1 << 17
_LONGEST_WORD = 32  # characters of a word that is kept


def make_word_encoder(backend: Any) -> Callable[[str], np.ndarray] | None:
    """A function from text to the ids, int32, that `backend.encode(text, add_special_tokens=False)` gives while
    special tokens are text; None where it cannot be told that they would be the same.

    Args:
        backend: a `tokenizers.Tokenizer`.
    """
    parts = json.loads(backend.to_str())
    if not parts.keys() <= _PARTS:
        return None
    prepare = _preparation(parts["normalizer"], parts["pre_tokenizer"])
    cut = _finest_cut(parts["model"])
    if prepare is None or cut is None or any(not token["special"] for token in parts["added_tokens"]):
        return None
    words = _Words(backend.model)
    find, look_up = cut.findall, words.__getitem__

    def encode(text: str) -> np.ndarray:
        return np.frombuffer(b"".join(map(look_up, find(prepare(text)))), np.int32)

    return encode


class _Words(dict):
    """Ids of words as the bytes of int32; made anew when it is full."""

    def __init__(self, model: Any):
        self._tokenize = model.tokenize

    def __missing__(self, word: str) -> bytes:
        ids = np.array([token.id for token in self._tokenize(word.replace(" ", _MARK))], np.int32).tobytes()
        if len(word) <= _LONGEST_WORD:
            if len(self) >= _MOST_WORDS:
                self.clear()
            self[word] = ids
        return ids


def _finest_cut(model: dict[str, Any]) -> re.Pattern[str] | None:
    if model["type"] != "BPE" or model.get("dropout") or model.get("ignore_merges"):
        return None
    if not model.keys() <= _MODEL_PARTS or _joins_unknown(model):
        return None
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or _MARK not in model["vocab"]:
        return None
    merged = [(first + second).replace(_MARK, " ") for first, second in model["merges"]]
    return next((cut for cut in _CUTS if all(cut.fullmatch(piece) for piece in merged)), None)


def _joins_unknown(model: dict[str, Any]) -> bool:
    """Whether neighbouring characters that the vocabulary lacks become one unknown piece, across a cut too. Where every
    byte has a piece, as in LLaMA's, no character is unknown, whatever `fuse_unk` says."""
    if not model.get("fuse_unk") or model.get("unk_token") is None:
        return False
    return not model.get("byte_fallback") or any(byte not in model["vocab"] for byte in _BYTES)


def _preparation(normalizer: dict | None, pre_tokenizer: dict | None) -> Callable[[str], str] | None:
    """What makes of a text the one to cut, with a space for every mark of one; None where it is not known."""
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _MARK}
    prepend = {"type": "Prepend", "prepend": _MARK}
    if steps not in ([], [replace], [prepend, replace]):
        return None
    always = prepend in steps
    unless_there = False
    if pre_tokenizer is None:
        if not steps:
            return None
    elif not pre_tokenizer.keys() <= _METASPACE_PARTS:
        return None
    elif pre_tokenizer["type"] == "Metaspace" and pre_tokenizer["replacement"] == _MARK and not pre_tokenizer["split"]:
        unless_there = pre_tokenizer["prepend_scheme"] != "never"
    else:
        return None

    def prepare(text: str) -> str:
        text = text.replace(_MARK, " ")
        return " " + text if text and (always or (unless_there and not text.startswith(" "))) else text

    return prepare
