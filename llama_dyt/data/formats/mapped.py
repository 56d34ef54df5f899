"""Files of numbers mapped into memory, of which only a few are open and little stays resident at any time.

A corpus has more files than a process may hold open, and mapped pages that were read once would count as the process's
memory until something took them away.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llama_dyt.core.errors import DataError

_MOST_OPEN = 64
_MOST_RESIDENT_BYTES = 64 << 20


class MappedFiles:
    """Arrays over files, opened when they are asked for.

    Args:
        open_file: makes the array of file number i, a view of a `map_file`.
        most_open: files held open; the one not asked for longest is closed.
    """

    def __init__(self, open_file: Callable[[int], tuple[mmap.mmap, np.ndarray]], most_open: int = _MOST_OPEN):
        self._open_file = open_file
        self._most_open = most_open
        self._open: OrderedDict[int, tuple[mmap.mmap, np.ndarray]] = OrderedDict()
        self._read_bytes = 0
        self._lock = threading.Lock()

    def read(self, number: int, start: int, stop: int, dtype: type) -> np.ndarray:
        """Elements `start` to `stop` - 1 of a file, as many as it has; a copy of the given type."""
        with self._lock:
            part = self._array(number)[start:stop]
            self._read_bytes += part.nbytes
        copy = part.astype(dtype)
        if self._read_bytes > _MOST_RESIDENT_BYTES:
            self._let_go()
        return copy

    def __getstate__(self):
        raise TypeError("mapped files stay in their process; open them anew in the other")

    def _array(self, number: int) -> np.ndarray:
        if number in self._open:
            self._open.move_to_end(number)
        else:
            while len(self._open) >= self._most_open:
                self._open.popitem(last=False)  # unmapped when nobody reads from it any more
            self._open[number] = self._open_file(number)
        return self._open[number][1]

    def _let_go(self) -> None:
        """Give back the pages read so far; the system still has them, they are just no longer counted as ours."""
        with self._lock:
            self._read_bytes = 0
            for mapped, _ in self._open.values():
                with contextlib.suppress(AttributeError, OSError):  # not every system knows this advice
                    mapped.madvise(mmap.MADV_DONTNEED)


def map_file(path: Path) -> mmap.mmap:
    """A whole file as read-only memory.

    Raises:
        DataError: it cannot be opened, or is empty.
    """
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be mapped ({getattr(error, 'strerror', None) or error}); check the file", about=path
        ) from error
