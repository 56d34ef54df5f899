"""A thread that hears of signals at once, whatever the main thread is in.

Python calls a signal's handler between two of its own instructions: never while the main thread is in a collective
that another rank does not come to. But it writes the signal's number to a descriptor right away
(`signal.set_wakeup_fd`), and that is read here.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

Hear = Callable[[int], None]
"""Called in the thread with the signal's number."""

_hearers: list[tuple[frozenset[int], Hear]] = []
_started_in = 0


def watch(numbers: list[int], handle: Callable[[int, Any], None], hear: Hear) -> Callable[[], None]:
    """Have signals handled in the main thread, and heard in the other; for the main thread to call.

    Args:
        handle: as `signal.signal` takes it.
        hear: the newest one alone is called.

    Returns:
        What puts back the handlers and the hearer that were there before.
    """
    _start()
    before = {number: signal.signal(number, handle) for number in numbers}
    heard = frozenset(numbers), hear
    _hearers.append(heard)

    def restore() -> None:
        _hearers.remove(heard)
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore


def _start() -> None:
    global _started_in
    if _started_in == os.getpid():
        return
    _started_in = os.getpid()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_leave_to_parent)
    threading.Thread(target=_listen, args=(reading,), name="llama_dyt-signals", daemon=True).start()


def _listen(reading: int) -> None:
    while numbers := os.read(reading, 64):
        for number in numbers:
            wanted, hear = _hearers[-1] if _hearers else (frozenset(), None)
            if number in wanted:
                hear(number)


def _leave_to_parent() -> None:
    """A fork has the descriptor too, and what it is told is not what its parent was told."""
    with suppress(ValueError):  # where it is no thread of Python's that forked
        signal.set_wakeup_fd(-1)
    _hearers.clear()
