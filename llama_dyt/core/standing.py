"""Where this process stands: the step it is in, and what of it; for whoever has to say so when a rank has failed.

It is kept in memory that the other ranks of a machine can read (`share`, `Board`), so that one that was killed or
stopped, and cannot speak, is told of as exactly as the others. Entering a phase is a few stores to memory.
"""

from __future__ import annotations

import mmap
import os
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum


class Phase(IntEnum):
    """What a step, and what is around steps, consists of."""

    START = 0
    DATA = 1
    FORWARD = 2
    BACKWARD = 3
    PIPELINE = 4
    OPTIMIZER = 5
    CALLBACKS = 6
    VALIDATION = 7
    SAVE = 8
    END = 9

    def __str__(self) -> str:
        return _IN_WORDS.get(self, self.name.lower())


_IN_WORDS = {
    Phase.START: "start",
    Phase.DATA: "waiting for data",
    Phase.PIPELINE: "forward and backward of the pipeline",
}
_BYTES = mmap.PAGESIZE
_STEP, _PHASE, _SINCE = range(3)


@dataclass(frozen=True)
class Standing:
    """Where a process stands.

    Attributes:
        step: the optimizer step it is in, counted from 1; 0 before the first.
        phase: of it.
        seconds: how long it has been in that.
    """

    step: int = 0
    phase: Phase = Phase.START
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"step {self.step}, {self.phase}" if self.step else str(self.phase)


_mine: array | memoryview = array("q", (0, 0, time.monotonic_ns()))
_shared_as: int | None = None


def in_step(number: int) -> None:
    """This process is in that optimizer step from now on."""
    _mine[_STEP] = number


def enter(phase: Phase) -> None:
    """This process is in that phase from now on."""
    _mine[_SINCE] = time.monotonic_ns()
    _mine[_PHASE] = phase


@contextmanager
def inside(phase: Phase) -> Iterator[None]:
    """This process is in that phase, then in the one before; after a failure it stands where that happened."""
    before = _mine[_PHASE]
    enter(phase)
    yield
    enter(Phase(before))


def mine() -> Standing:
    """Where this process stands."""
    return _read(_mine)


def _read(board: array | memoryview) -> Standing:
    seconds = max(time.monotonic_ns() - board[_SINCE], 0) / 1e9
    return Standing(board[_STEP], Phase(board[_PHASE]), seconds)


def share() -> int | None:
    """Have other processes of this machine able to read where this one stands, for as long as it lives or they look.

    Returns:
        The descriptor to give to their `Board`; None where the system has no such memory.
    """
    global _mine, _shared_as
    if _shared_as is None:
        with suppress(AttributeError, OSError):
            number = os.memfd_create("llama_dyt-standing")
            os.ftruncate(number, _BYTES)
            _mine, _shared_as = memoryview(mmap.mmap(number, _BYTES)).cast("q"), number
    in_step(0)
    enter(Phase.START)
    return _shared_as


class Board:
    """Where another process of this machine stands, or stood when it ended."""

    def __init__(self, pid: int, number: int | None) -> None:
        """`number`: what `share` gave there. What cannot be read now never is."""
        self._board: memoryview | None = None
        if number is not None:
            with suppress(OSError, ValueError), open(f"/proc/{pid}/fd/{number}", "rb") as file:
                self._board = memoryview(mmap.mmap(file.fileno(), _BYTES, prot=mmap.PROT_READ)).cast("q")

    def read(self) -> Standing | None:
        """Where it stands; None where that cannot be known."""
        try:
            return None if self._board is None else _read(self._board)
        except ValueError:  # no phase that this program knows
            return None
