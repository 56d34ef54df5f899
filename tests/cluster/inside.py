"""Run a Python program on a machine of `machines`: inside.py PID PROGRAM FLAGS…, in a fork already."""

from __future__ import annotations

import ctypes
import os
import runpy
import sys
from pathlib import Path


def enter(pid: int) -> None:
    """Be on the machine whose first process this is; processes are its own from the next fork on."""
    libc, folder = ctypes.CDLL(None, use_errno=True), os.getcwd()
    files = [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("pid", "uts", "net", "mnt")]
    for file in files:
        if libc.setns(file, 0) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(file)
    os.chdir(folder)


def main() -> None:
    enter(int(sys.argv[1]))
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(status if status >= 0 else 128 - status)
    sys.argv = sys.argv[2:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
