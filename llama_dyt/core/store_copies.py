"""Copies of a store's files in this user's cache folder, for what reads files: made once a machine, within a bound.

A home is a folder of copies. One that a process uses stays; of the others those unused for longest go first.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from llama_dyt.core import files
from llama_dyt.core.errors import StoreError

BOUND_VARIABLE = "LLAMA_DYT_CACHE_GB"
BOUND_GB = 100.0
_USED = ".used"
_LOCK = ".fetching"


def folder() -> Path:
    """Where homes are; it need not be there."""
    return files.cache_folder() / "stores"


def keep(home: Path) -> IO[str]:
    """Have a home, which is made where it is not there, stay until what this returns is closed."""
    while True:
        home.mkdir(parents=True, exist_ok=True)
        try:
            used = open(home / _USED, "a")  # noqa: SIM115 - the lock goes with it
        except FileNotFoundError:  # removed in between
            continue
        fcntl.flock(used, fcntl.LOCK_SH)
        with suppress(FileNotFoundError):
            if os.fstat(used.fileno()).st_ino == (home / _USED).stat().st_ino:
                os.utime(used.fileno())
                return used
        used.close()


@contextmanager
def fetching(home: Path) -> Iterator[None]:
    """One process at a time."""
    with open(home / _LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def remove_unused(home: Path) -> bool:
    """Remove a home, unless a process uses it; whether it went."""
    with suppress(OSError), open(home / _USED) as used:
        fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(home, ignore_errors=True)
        return True
    return False


def make_room(num_bytes: int, what: str) -> None:
    """Remove homes that nobody uses until `num_bytes` more are within the bound and on the disk, or none is left.

    Raises:
        StoreError: the disk has no room for them all the same.
    """
    homes = sorted((_used_at(home), home) for home in folder().iterdir() if (home / _USED).is_file())
    sizes = {home: _size(home) for _, home in homes}
    total = sum(sizes.values())
    while homes and (total + num_bytes > _bound() or _free() < num_bytes):
        _, home = homes.pop(0)
        if remove_unused(home):
            total -= sizes[home]
    if _free() < num_bytes:
        raise StoreError(
            f"{what} needs {num_bytes / 1e9:.2f} GB in {folder()}, whose disk has {_free() / 1e9:.2f} GB left; make "
            "room, or set XDG_CACHE_HOME to a folder on another"
        )


def _bound() -> float:
    """Bytes of all homes.

    Raises:
        StoreError: the variable holds no size.
    """
    given = os.environ.get(BOUND_VARIABLE) or BOUND_GB
    try:
        bound = float(given)
    except ValueError:
        bound = -1.0
    if not bound >= 0:
        raise StoreError(f"{BOUND_VARIABLE}={given} is no size; give gigabytes, such as {BOUND_GB:g}")
    return bound * 1e9


def _free() -> int:
    return shutil.disk_usage(folder()).free


def _used_at(home: Path) -> float:
    with suppress(OSError):
        return (home / _USED).stat().st_mtime
    return 0.0


def _size(home: Path) -> int:
    total = 0
    for place, _, names in os.walk(home):
        for name in names:
            with suppress(OSError):
                total += (Path(place) / name).stat().st_size
    return total
