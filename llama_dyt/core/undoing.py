"""What a process has to do if it is ended from outside of its main thread: by another rank's failure, or a signal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Undoing:
    """Actions, the last added done first.

    Attributes:
        ending_status: while they are done, the status that the process is about to end with; None before.
    """

    def __init__(self) -> None:
        self.ending_status: int | None = None
        self._actions: list[Callable[[], Any]] = []

    def add(self, action: Callable[[], Any]) -> None:
        """From here on."""
        self._actions.append(action)

    @contextmanager
    def holding(self, action: Callable[[], Any]) -> Iterator[None]:
        """While inside."""
        self._actions.append(action)
        try:
            yield
        finally:
            self._actions.remove(action)

    def clear(self) -> None:
        self._actions.clear()

    def undo(self) -> None:
        """Do all of them; one that fails keeps none of the others back."""
        for action in reversed(self._actions):
            with suppress(Exception):
                action()
