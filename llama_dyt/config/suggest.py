"""Naming the nearest known word: every "unknown ..." message of the configuration is made here.

Its own file because flags, YAML keys, plugins, sizes and choices all use it and none of them should import another.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word` (letter case ignored), or None when nothing is much like it."""
    by_lower_case = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower_case, n=1, cutoff=0.5)
    return by_lower_case[close[0]] if close else None


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
