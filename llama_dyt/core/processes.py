"""Processes as Linux shows them: which one started which, whether one is still there, and how to end with one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
ASKING_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""What asks a run to save and end: schedulers and launchers (TERM, or USR1 and USR2 where a job's script says so), a
person (INT), a terminal that closes (HUP)."""


@dataclass(frozen=True)
class Process:
    """One process as it was when it was looked at.

    Attributes:
        started: clock ticks between the machine's start and its own; with the pid it names one process for good.
        parent: pid of who it belongs to now, 0 where that lies outside this container.
        words: its command line.
    """

    pid: int
    started: int
    parent: int
    words: tuple[str, ...]

    @property
    def is_there(self) -> bool:
        """Whether it still runs. One that has ended and was not waited for does not."""
        return start_time(self.pid) == self.started


def start_time(pid: int) -> int | None:
    """When a process began, in the kernel's ticks; None where there is none, or only what is left of it."""
    stat = _stat(pid)
    return None if stat is None else stat[1]


def look_at(pid: int) -> Process | None:
    """A running process; None where there is none, or where it may not be seen (another user's, with hidepid)."""
    stat = _stat(pid)
    if stat is None:
        return None
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = tuple(os.fsdecode(word) for word in file.read().rstrip(b"\0").split(b"\0"))
    except OSError:
        return None
    return Process(pid, stat[1], stat[0], words)


def state(pid: int, started: int) -> str:
    """What a process does, by the kernel's letter: R runs, S waits, D waits for a device, T is stopped, t is held by a
    debugger; empty where it is gone."""
    stat = _stat(pid)
    return stat[2] if stat is not None and stat[1] == started else ""


def began_with(pid: int) -> dict[str, str]:
    """The environment that a process's program was started in; empty where there is none, or it may not be seen."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            lines = os.fsdecode(file.read()).split("\0")
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)


def kill(pid: int, started: int) -> bool:
    """End a process for good, and none that has its number by now; whether it was there."""
    try:
        handle = os.pidfd_open(pid)
    except (AttributeError, OSError):  # it is gone, or no such Linux
        return False
    try:
        if start_time(pid) != started:
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def boot_id() -> str | None:
    """What tells this machine's present run from every other; None where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def pid_namespace() -> int | None:
    """Within which pids mean the same processes; None where the system does not say."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return None


def ancestors() -> list[Process]:
    """Who started this process, who started that one, and so on as far as can be seen."""
    found: list[Process] = []
    pid = os.getppid()
    while pid > 0 and (process := look_at(pid)) is not None:
        found.append(process)
        pid = process.parent
    return found


def children(of: int | str = "self") -> list[int]:
    """Pids of the processes that one has started, by any of its threads, and that have not been waited for."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{of}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{of}/task/{task}/children") as file:
                found += map(int, file.read().split())
    return found


def leave_signals_to_parent() -> None:
    """Have this process not heed what asks a run to end: Slurm and terminals tell all processes, and a run that saves
    still needs those that work for it. They end with who started them."""
    for number in ASKING_TO_END:
        signal.signal(number, signal.SIG_IGN)


def heed_no_more() -> None:
    """Have this process, which is about to end, not heed what asks it to, as a launcher does once one rank has ended.

    From any thread, where `signal.signal` is for the main one.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    for number in ASKING_TO_END:
        libc.signal(number, ctypes.c_void_p(int(signal.SIG_IGN)))


def end_with_parent(parent: int) -> None:
    """Have the kernel end this process, at once and whatever it is doing, when its parent ends.

    More exactly, when the thread ends that started this process. A program started by this one does not inherit it.

    Args:
        parent: its pid, as the parent told it or as was read before: it may be gone already, and then so is this.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _stat(pid: int) -> tuple[int, int, str] | None:
    """(parent, start, state) of a process that runs; None where it is gone or has only not been waited for."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # the name before it may hold anything
    except OSError:
        return None
    if fields[0] in (b"Z", b"X"):
        return None
    return int(fields[1]), int(fields[19]), fields[0].decode()
