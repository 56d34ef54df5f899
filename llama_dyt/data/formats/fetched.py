"""Files of a store on this machine while they are read, the next one fetched meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from llama_dyt.core.errors import DataError
from llama_dyt.core.store import SCHEME, at
from llama_dyt.data.formats.record_files import DataFile, Fetched


def on_this_machine(files: Sequence[DataFile]) -> Iterator[DataFile]:
    """The files in their order, each readable until the next one is asked for; those of this machine as they are.

    Raises:
        DataError: one cannot be had, or is another than when the dataset was looked at.
    """
    coming: _Coming | None = None
    try:
        for file, following in zip(files, [*files[1:], None], strict=True):
            if file.fetch is None:
                yield file
                continue
            path, used = (coming or _Coming(file)).result()
            coming = _Coming(following) if following is not None and following.fetch is not None else None
            with used:
                yield replace(file, path=path, fetch=None)
    finally:
        if coming is not None:
            coming.drop()


class _Coming:
    """A file that a thread fetches."""

    def __init__(self, file: DataFile) -> None:
        self._file, self._future = file, Future()
        threading.Thread(target=self._run, name="llama_dyt-fetch", daemon=True).start()

    def _run(self) -> None:
        try:
            self._future.set_result(self._file.fetch())
        except BaseException as error:  # for who waits
            self._future.set_exception(error)

    def result(self) -> Fetched:
        file = self._file
        try:
            path, used = self._future.result()
        except OSError as error:
            raise DataError(told(str(file.path), error), about=str(file.path)) from error
        if file.size not in (None, path.stat().st_size):
            used.close()
            raise DataError(f"{file.path}: is not what it was when the dataset was looked at", about=str(file.path))
        return path, used

    def drop(self) -> None:
        def close(future: Future) -> None:
            with suppress(BaseException):
                future.result()[1].close()

        self._future.add_done_callback(close)


@contextmanager
def readable(path: str) -> Iterator[Path]:
    """A file, or one of a store by its address, as one of this machine.

    Raises:
        DataError: the store does not give it.
    """
    if not SCHEME.match(path):
        yield Path(path)
        return
    place = at(path)
    try:
        local, used = place.store.copy_of(place)
    except OSError as error:
        raise DataError(told(path, error), about=path) from error
    with used:
        yield local


def told(address: str, error: OSError) -> str:
    """A store's error about an address, which it may begin with."""
    return str(error) if str(error).startswith(address) else f"{address}: cannot be read ({error.strerror or error})"
