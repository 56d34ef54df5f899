"""Lines on stderr, whole and each on a line of its own, also beside a progress bar that has not ended its line.

Rank 0 draws the bar; the other ranks of a run share its terminal, so all of them know of it.
"""

from __future__ import annotations

import sys

_bar_stands = False


def bar_stands(stands: bool) -> None:
    """Say that from now on a progress bar may have left its line open, or no longer."""
    global _bar_stands
    _bar_stands = stands


def on_its_own_line(message: str) -> str:
    """The text to write so that the message begins a line and ends one."""
    return f"{chr(10) if _bar_stands else ''}{message}\n"


def say(message: str) -> None:
    """A line on stderr, whole even where several threads and processes write there; it waits for no lock."""
    sys.stderr.write(on_its_own_line(message))
    sys.stderr.flush()
