"""The one way to write what others read: aside, on the disk, then under its name. Half of it is never seen.

A file: `written_whole`, `write_text`, `write_json`, or `put_in_place` for one written over many calls. A folder:
`made_whole`.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
"""How an address begins, also one that was taken for a path, which has one slash."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a name in the same folder to write the file under, and renames it to `path` once it is on the disk.

    Where what is inside fails, or the disk does, nothing is left and an older file stays as it was.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    aside = _beside(path)
    try:
        yield aside
        put_in_place(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


@contextmanager
def made_whole(target: Path) -> Iterator[Path]:
    """Gives a name beside `target` to make the folder under, and renames it to `target` once its files are on the disk.

    Where another process made `target` meanwhile, that one stays and this one's goes, as it does after a failure.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    aside = _beside(target)
    try:
        yield aside
        for path in (aside, *aside.rglob("*")):
            sync_folder(path) if path.is_dir() else sync(path)
        try:
            os.rename(aside, target)
        except OSError:
            if not target.is_dir():
                raise
        sync_folder(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def put_in_place(aside: Path, target: Path) -> None:
    """Give a finished file its name, on the disk; one of that name is replaced."""
    sync(aside)
    os.replace(aside, target)
    sync_folder(target.parent)


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")


def write_text(path: Path, text: str) -> None:
    """Write a file of text as `written_whole` does."""
    with written_whole(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, as `written_whole` does."""
    write_text(path, to_json(value))


def to_json(value: Any) -> str:
    """A value as the text of a JSON file."""
    return json.dumps(value, indent=1) + "\n"


def inside(folder: Path, name: str) -> Path:
    """The file that an index, a table or a list which came with a folder names, in that folder.

    Raises:
        ValueError: it names one outside of it, by `..` or from the root.
    """
    parts = PurePosixPath(str(name).replace("\\", "/"))
    if not str(name) or "\0" in str(name) or parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
        raise ValueError(f"it names {str(name)!r}, which is outside of its folder")
    return folder / name


def cache_folder() -> Path:
    """Where this user keeps what can be made or fetched again; it need not be there."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "llama_dyt"


def sync(path: Path) -> None:
    """Have the file on the disk, not in a cache, before anything says that it is there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def why_not_writable(folder: str | Path) -> str | None:
    """Why nothing can be written in a folder that exists or is to be made, or None. Leaves nothing behind.

    It tries in the nearest folder that exists: permissions alone do not tell of read-only or full disks, and say
    nothing to root.
    """
    if _ADDRESS.match(str(folder)):
        return "it is an address, and this goes to a folder of this machine"
    folder = Path(folder)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        return f"{existing} is a file" if existing != folder else "it is a file"
    try:
        with tempfile.TemporaryFile(dir=existing):
            return None
    except OSError as error:
        return f"{existing} cannot be written ({error.strerror})"
