"""Naming the nearest known word: every "unknown ..." message of the configuration is made here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word` (letter case, dashes and underscores ignored), or None when nothing is."""
    best = max(known, key=lambda name: _likeness(word, name), default=None)
    return best if best is not None and _likeness(word, best) >= 0.6 else None


def _likeness(word: str, name: str) -> float:
    """From 0 to 1. The beginning of a name counts nearly as the whole, so that `--wormup` finds `--warmup_steps`."""
    asked, parts = _plain(word).split("_"), _plain(name).split("_")
    whole = difflib.SequenceMatcher(None, "_".join(asked), "_".join(parts)).ratio()
    start = difflib.SequenceMatcher(None, "_".join(asked), "_".join(parts[: len(asked)])).ratio()
    return max(whole, start - 0.1)


def _plain(name: str) -> str:
    return name.lower().lstrip("-").replace("-", "_")


def unknown(what: str, word: str, known: Iterable[str], *, listed: bool = True) -> str:
    """One line: "unknown plugin 'zero3': did you mean 'zero2'? (known: ...)".

    Args:
        what: what kind of thing the word should name ("plugin", "model size").
        word: what was given.
        known: the names that would have been right.
        listed: also list them all; off where there are too many to help.
    """
    known = list(known)
    guess = nearest(word, known)
    message = f"unknown {what} {word!r}"
    if guess is not None:
        message += f": did you mean {guess!r}?"
    if listed:
        message += f" (known: {', '.join(known)})"
    return message
