"""How long the kernel believes in a connection whose other end is silent.

A machine that is lost with its network closes nothing. What was sent to it the kernel sends again for about fifteen
minutes, and an answer is waited for without end; torch's store sets no limit of its own on either.
"""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

_PROBES = 3


def connections() -> set[int]:
    """Numbers of the sockets that this process has open; none where the system does not say."""
    found = set()
    with suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                if stat.S_ISSOCK(os.stat(Path("/proc/self/fd") / name).st_mode):
                    found.add(int(name))
    return found


def give_up_after(number: int, seconds: float) -> None:
    """Have calls on a socket fail once its other end has been silent for so long. Not TCP, or not Linux: nothing.

    Args:
        number: its file descriptor.
    """
    interval = max(round(seconds / (_PROBES + 1)), 1)
    options = {"TCP_KEEPIDLE": interval, "TCP_KEEPINTVL": interval, "TCP_KEEPCNT": _PROBES}
    options["TCP_USER_TIMEOUT"] = max(round(seconds * 1000), 1000)
    with suppress(OSError), socket.socket(fileno=os.dup(number)) as connection:
        if connection.type != socket.SOCK_STREAM or connection.family not in (socket.AF_INET, socket.AF_INET6):
            return
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in options.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
