"""The stretch of training that the next record's rates are of: its time, its tokens, and the wait for data in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Window:
    """Time and tokens since it was last begun: with a record, or after what is no training time.

    Attributes:
        tokens: over all ranks.
        waited_seconds: for data.
        steps: begun in it.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.tokens = 0
        self.waited_seconds = 0.0
        self.steps = 0
        self._stepped_seconds = 0.0
        self._start = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self.waited_seconds += time.perf_counter() - start

    @contextmanager
    def stepping(self, begun: int = 0) -> Iterator[None]:
        """Count the time inside as a step's, or as waiting for one; `begun`: steps that begin with it."""
        start = time.perf_counter()
        yield
        self._stepped_seconds += time.perf_counter() - start
        self.steps += begun

    def seconds_between(self) -> float:
        """What was spent neither in steps nor waiting for data."""
        return max(self.seconds() - self.waited_seconds - self._stepped_seconds, 0.0)

    def seconds(self) -> float:
        return max(time.perf_counter() - self._start, 1e-9)
