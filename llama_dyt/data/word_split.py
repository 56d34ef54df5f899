"""Encoding a SentencePiece-like tokenizer's text word by word where that cannot change a token, as it is faster.

Its own file because it is an argument about one kind of model: BPE puts neighbouring pieces together only into pieces
of its vocabulary, so where no piece has a space mark behind another character, nothing is joined across such a place.
"""

from __future__ import annotations

import json
from typing import Any

_MARK = "\u2581"  # SentencePiece's mark of a space
_WORD = f"{_MARK}*[^{_MARK}]+|{_MARK}+"


def split_into_words(backend: Any) -> Any:
    """A `tokenizers.Tokenizer` that gives the same ids, looking at a word at a time; `backend` itself where it cannot
    be told that they would be the same."""
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    parts = json.loads(backend.to_str())
    model, before = parts["model"], parts["pre_tokenizer"]
    if model["type"] != "BPE" or model.get("dropout") or model.get("ignore_merges"):
        return backend
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return backend
    if before is not None and (before["type"] != "Metaspace" or before["replacement"] != _MARK or before["split"]):
        return backend
    vocabulary = model["vocab"]
    if _MARK not in vocabulary or any(_MARK in piece.lstrip(_MARK) for piece in vocabulary):
        return backend
    quick = Tokenizer.from_str(backend.to_str())
    split = pre_tokenizers.Split(Regex(_WORD), "isolated")
    quick.pre_tokenizer = split if before is None else pre_tokenizers.Sequence([backend.pre_tokenizer, split])
    return quick
