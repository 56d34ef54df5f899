"""What SIGTERM, SIGUSR1, SIGUSR2, SIGHUP and Ctrl-C ask of a run: to save after the step it is in, and end."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llama_dyt.core.processes import ASKING_TO_END

INTERRUPTED_STATUS = 75
"""Exit status of a run that saved and stopped because it was asked to: BSD's EX_TEMPFAIL, "try again later". No shell
and no launcher ends with it of its own accord, as they do with 143 when SIGTERM kills."""

_SECOND_CTRL_C_SECONDS = 2.0


class StopRequest:
    """Whether this process was asked to end: by SIGTERM (Slurm, torchrun, a supervisor), by SIGUSR1 or SIGUSR2 (`sbatch
    --signal=USR1@600`), by Ctrl-C, or by SIGHUP (a terminal that closes).

    The run then saves after the step it is in, and ends. Asking again changes nothing, however soon: Slurm signals the
    workers and torchrun, which signals the workers too, and who will have it gone whatever it does has SIGKILL. Only a
    second Ctrl-C, some seconds after the first, is a person who does not want to wait: it ends the run without a save.
    """

    def __init__(self) -> None:
        self.asked = False
        self._first_ctrl_c: float | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Heed the signals inside; nests."""
        before = self.listen()
        try:
            yield
        finally:
            self.restore(before)

    def listen(self) -> dict[int, Any]:
        """Heed the signals from now on; gives what `restore` needs. What is ignored (nohup) stays so."""
        heeded = [number for number in ASKING_TO_END if signal.getsignal(number) is not signal.SIG_IGN]
        return {number: signal.signal(number, self._ask) for number in heeded}

    @staticmethod
    def restore(before: dict[int, Any]) -> None:
        """Put back the handlers that were there before `listen`."""
        for number, handler in before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._first_ctrl_c is None:
                self._first_ctrl_c = now
            elif now - self._first_ctrl_c > _SECOND_CTRL_C_SECONDS:
                raise KeyboardInterrupt
