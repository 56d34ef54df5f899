"""What SIGTERM, SIGUSR1, SIGUSR2, SIGHUP and Ctrl-C ask of a run: to save after the step it is in, and end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llama_dyt.core import ranks, signal_watch
from llama_dyt.core.processes import ASKING_TO_END
from llama_dyt.core.standstill import Standstill, asked_anywhere

INTERRUPTED_STATUS = 75
"""Exit status of a run that saved and stopped because it was asked to: BSD's EX_TEMPFAIL, "try again later". No shell
and no launcher ends with it of its own accord, as they do with 143 when SIGTERM kills."""

_SECOND_CTRL_C_SECONDS = 2.0
_LOOK_SECONDS = 0.5
_OF_SHELLS = 128
"""Added to a signal's number: the status of what a signal ended."""


class StopRequest:
    """Whether this process was asked to end: by SIGTERM (Slurm, torchrun, a supervisor), by SIGUSR1 or SIGUSR2 (`sbatch
    --signal=USR1@600`), by Ctrl-C, or by SIGHUP (a terminal that closes).

    The run then saves after the step it is in, and ends. Asking again changes nothing, however soon: Slurm signals the
    workers and torchrun, which signals the workers too, and who will have it gone whatever it does has SIGKILL. Only a
    second Ctrl-C, some seconds after the first, is a person who does not want to wait: it ends the run without a save.

    Attributes:
        asked: it was.
        has_steps: there is something to save. Before that, whoever is asked ends at once, and all others with it.
    """

    def __init__(self, grace: float | None = None, last_saved: Callable[[], Any] = lambda: None) -> None:
        """
        Args:
            grace: seconds from the first signal that reached a rank to a checkpoint on all of them; after that all end
                without one. None: as long as it takes.
            last_saved: the last checkpoint that is whole, for the message.
        """
        self.asked = False
        self.has_steps = False
        self._grace = grace
        self._last_saved = last_saved
        self._first_ctrl_c: float | None = None
        self._deadline: threading.Timer | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Heed the signals inside; nests."""
        restore = self.listen()
        try:
            yield
        finally:
            restore()

    def listen(self) -> Callable[[], None]:
        """Heed the signals from now on; gives what puts back what was there. What is ignored (nohup) stays so."""
        return signal_watch.watch(_heeded(), self._ask, self._hear)

    def conclude(self) -> None:
        """What was asked for is done: the last checkpoint is whole."""
        self._grace = None
        if self._deadline is not None:
            self._deadline.cancel()

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._first_ctrl_c is None:
                self._first_ctrl_c = now
            elif now - self._first_ctrl_c > _SECOND_CTRL_C_SECONDS:
                raise KeyboardInterrupt

    def _hear(self, number: int) -> None:
        """In a thread: the main one may be in a collective for long."""
        if not self.has_steps:
            _end(number, " before the first step: there was nothing to save")
        self.asked = True
        if self._grace is not None and self._deadline is None:
            self._deadline = threading.Timer(self._grace, self._give_up, [number])
            self._deadline.daemon = True
            self._deadline.start()

    def _give_up(self, number: int) -> None:
        if self._grace is None:
            return
        name, last = signal.Signals(number).name, self._last_saved()
        before = f"the last complete one is {last}" if last else "none was written before"
        message = f"no checkpoint was whole {self._grace:g} s after {name} (--save_grace): ended without one; {before}"
        ranks.end_now(f"error: {message}", INTERRUPTED_STATUS)


def wait_for_data(ready: Callable[[float], bool], stop: StopRequest, where: str) -> bool:
    """Wait until the next batch is there; every rank in its own time.

    Args:
        ready: whether it is, after so many seconds at most.
        where: names the place between two steps.

    Returns:
        False: some rank was asked to end, and all of them wait here: they are to save as they stand.
    """
    standstill = None
    while not ready(_LOOK_SECONDS):
        if stop.has_steps and standstill is None and asked_anywhere(stop.asked):
            standstill = Standstill(where)
        if standstill is not None and standstill.all_stay():
            return False
    return standstill is None or standstill.may_go()


def end_at_once() -> None:
    """From now on a signal ends this process and all others of the run right where they are: what they hold is given
    free, what they began undone."""
    signal_watch.watch(_heeded(), lambda number, frame: None, _end)


def _end(number: int, why: str = "") -> None:
    name = signal.Signals(number).name
    ranks.end_now(f"ended by {name}{why}", _OF_SHELLS + number)


def _heeded() -> list[int]:
    return [number for number in ASKING_TO_END if signal.getsignal(number) is not signal.SIG_IGN]
