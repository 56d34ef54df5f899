"""Whether this process waits for a disk or a network file system that no longer answers.

Work that others wait for however long it takes (a save, reading) shows life by the watch's beats, and would do so for
ever where its own thread is in a wait of the kernel that nothing ends. That is told as Linux tells of hung tasks:
uninterruptible sleep (D), and not once on a processor from one look to the next. A file system in user space (FUSE) may
wait otherwise.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from llama_dyt.core.processes import children


class DeviceWait:
    """For how many looks on end threads of this process, or of one that works for it, have waited for a device."""

    def __init__(self) -> None:
        self._waiting: dict[Path, tuple[str, int]] = {}  # thread → how often it has been on a processor, looks

    def forget(self) -> None:
        """Nothing is waited for: the count begins anew."""
        self._waiting = {}

    def look(self) -> int:
        """Look now; the most looks, this one included, that a thread has waited through without a break."""
        found = {}
        for process in (os.getpid(), *children()):
            with suppress(OSError):
                for task in Path(f"/proc/{process}/task").iterdir():
                    times = _times_run(task)
                    if times is not None:
                        before, looks = self._waiting.get(task, (times, 0))
                        found[task] = times, (looks + 1 if before == times else 1)
        self._waiting = found
        return max((looks for _, looks in found.values()), default=0)

    def where(self) -> str:
        """What the kernel calls the wait that has lasted longest; empty where it does not say."""
        task = max(self._waiting, key=lambda task: self._waiting[task][1], default=Path())
        with suppress(OSError):
            return (task / "wchan").read_text(encoding="ascii").strip("0\n")
        return ""


def _times_run(task: Path) -> str | None:
    """How often a thread that waits for a device has been on a processor; None of any other."""
    with suppress(OSError):
        state = (task / "stat").read_bytes().rpartition(b")")[2].split()[0]
        if state == b"D":
            return (task / "schedstat").read_text(encoding="ascii").split()[2]
    return None
