"""What a store of whole files needs to hold a run: no renames, no appending, no locks.

A store gives `put`, `get`, `list` and `delete`; with a `put_new` of its own, two runs can never claim one folder. The
rest follows. A folder is there once its marker is, which is put last; what has none is a save that was killed: readers
pass over it and the next save removes it. Files that grow are written in this user's cache folder and put from there.
What libraries read (a model, a tokenizer) is fetched into the cache folder, once for all processes of a machine.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from llama_dyt.core import files, store_copies
from llama_dyt.core.store import MARKER, Records, Say, Spool, Staging
from llama_dyt.core.store_path import StorePath

SPOOL_SECONDS = 30.0

_used: list[IO[str]] = []


class ObjectStore(ABC):
    """A store to derive one's own from; an instance is registered with `core.store.STORES`.

    Addresses are whole ones, `name://…`, without a slash at the end. What cannot be done raises
    `errors.StoreError`, in words for the user, or another OSError.

    Attributes:
        name: the scheme.
    """

    name: str

    @abstractmethod
    def put(self, address: str, file: Path) -> None:
        """Keep a copy of a local file, durable once this returns; readers see all of it, or what was there before."""

    @abstractmethod
    def get(self, address: str, file: Path) -> None:
        """Write the file kept under an address to a local one.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def list(self, address: str) -> dict[str, int]:
        """Address → bytes, of the file of this address and of all below it (`address/…`)."""

    @abstractmethod
    def delete(self, address: str) -> None:
        """Remove a file; one that is gone is no error."""

    def put_new(self, address: str, file: Path) -> bool:
        """Put a file where there is none; False where there is one. Where the store can, in one act.

        This one looks before and after, and so may tell two that both were first; the later one finds out when it first
        saves.
        """
        if self.list(address):
            return False
        self.put(address, file)
        return self.read(address) == file.read_bytes()

    def mark(self, address: str) -> str:
        """Changes with a file's content, where the store can tell without reading it."""
        return ""

    def forget_unfinished(self, address: str, is_ours: Callable[[str], bool]) -> None:  # noqa: B027 - few keep such
        """Remove what puts left when their processes were killed, in folders right below an address whose names are
        ours; for a store that keeps such."""

    # --- what the program asks -----------------------------------------------------------------------------------

    def at(self, address: str) -> StorePath:
        return StorePath(self, address.rstrip("/"))

    def why_not_writable(self, place: StorePath) -> str | None:
        try:
            self.list(place.address)
        except OSError as error:
            return f"the store {self.name} does not answer ({error.strerror or error})"
        return None

    def write_text(self, place: StorePath, text: str) -> None:
        with _temporary_folder() as folder:
            (folder / "file").write_text(text, encoding="utf-8")
            self.put(place.address, folder / "file")

    def sizes(self, folder: StorePath) -> dict[str, int]:
        below = f"{folder.address}/"
        return {
            name.removeprefix(below): size for name, size in self.list(below[:-1]).items() if name.startswith(below)
        }

    def local(self, folder: StorePath, only: str = "") -> Path:
        sizes = self.sizes(folder)
        marker = self.read(f"{folder.address}/{MARKER}") if MARKER in sizes else b""
        run = f"{self.name}-{_digest(folder.parent.address.encode())}-"
        home = store_copies.folder() / (run + _digest(json.dumps([folder.name, sizes]).encode() + marker))
        _used.append(store_copies.keep(home))  # while this process lives
        for other in home.parent.glob(f"{run}*"):
            if other != home:
                store_copies.remove_unused(other)
        wanted = {name: home / folder.name / name for name in sizes if name.startswith(only) or name == MARKER}
        with store_copies.fetching(home):
            missing = [name for name, file in wanted.items() if not file.is_file()]
            if missing:
                store_copies.make_room(sum(sizes[name] for name in missing), str(folder))
            for name in missing:
                self._fetch(f"{folder.address}/{name}", wanted[name])
        return home / folder.name  # which keeps its name: readers tell by it which step it is

    def copy_of(self, place: StorePath) -> tuple[Path, IO[str]]:
        """A file of this machine with the same content, made once for all its processes; it stays until what comes with
        it is closed.

        Raises:
            FileNotFoundError: there is none.
        """
        sizes = self.list(place.address)
        if place.address not in sizes:
            raise FileNotFoundError(f"{place.address} is not there")
        size = sizes[place.address]
        mark = _digest(f"{place.address}\n{size}\n{self.mark(place.address)}".encode())
        home = store_copies.folder() / f"{self.name}-file-{mark}"
        used = store_copies.keep(home)
        try:
            with store_copies.fetching(home):
                if not (home / place.name).is_file():
                    store_copies.make_room(size, place.address)
                    self._fetch(place.address, home / place.name)
        except BaseException:
            used.close()
            raise
        return home / place.name, used

    def stage(self, final: StorePath, nonce: str) -> Staging:
        return _PutFolder(self, final)

    def folders(self, parent: StorePath, is_whole: Callable[[StorePath], bool]) -> dict[str, StorePath]:
        names = {name.partition("/")[0] for name in self.sizes(parent) if "/" in name}
        return {name: parent / name for name in sorted(names)}

    def home_of(self, folder: StorePath) -> StorePath:
        return folder

    def clear(
        self, parent: StorePath, is_ours: Callable[[str], bool], is_whole: Callable[[StorePath], bool], say: Say
    ) -> None:
        for name, folder in self.folders(parent, is_whole).items():
            if is_ours(name) and not (folder / MARKER).is_file():
                say(f"removed {folder}, the unfinished checkpoint of a run that is gone")
                self.delete_below(folder)
        self.forget_unfinished(parent.address, is_ours)

    def remove(self, folder: StorePath) -> None:
        self.delete_below(folder)

    def sync_spools(self) -> None:
        for spool in list(_PutFiles.open):
            spool.sync()

    def spool(self, folder: StorePath, *names: str) -> Spool:
        return _PutFiles(self, folder, names)

    def records(self, folder: StorePath, name: str) -> Records:
        return _PutRecords(self, folder, name)

    def delete_below(self, folder: StorePath) -> None:
        """Remove a folder; its marker first, so that half of it is never taken for all."""
        self.delete(f"{folder.address}/{MARKER}")
        for name in self.sizes(folder):
            self.delete(f"{folder.address}/{name}")

    def read(self, address: str) -> bytes:
        """The content of a small file."""
        with _temporary_folder() as folder:
            self.get(address, folder / "file")
            return (folder / "file").read_bytes()

    def _fetch(self, address: str, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with files.written_whole(file) as aside:
            self.get(address, aside)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="llama_dyt-") as folder:
        yield Path(folder)


def _work_folder(store: ObjectStore) -> Path:
    """A folder of this process alone, on the disk that has room."""
    store_copies.folder().mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{store.name}-writing-", dir=store_copies.folder()))


class _PutFolder:
    """A folder whose files are put as they are finished, each process its own, and whose marker comes last."""

    def __init__(self, store: ObjectStore, final: StorePath) -> None:
        self._store = store
        self._final = final
        self._folder: Path | None = None
        self._began = False

    def begin(self, say: Say) -> None:
        self._began = True
        if self._final.exists():
            say(f"{self._final} was there already, of another course of this run: it is replaced")
            self._store.delete_below(self._final)

    def folder(self, name: str = "") -> Path:
        if self._folder is None:
            self._folder = _work_folder(self._store)
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        return folder

    def hand_over(self) -> None:
        if self._folder is None:
            return
        for file in sorted(path for path in self._folder.rglob("*") if path.is_file()):
            self._store.put(f"{self._final.address}/{file.relative_to(self._folder).as_posix()}", file)
            file.unlink()

    def publish(self, marker: str, say: Say) -> None:
        self.hand_over()
        # What was logged up to this step is there before anybody can go on from it.
        self._store.sync_spools()
        self._store.write_text(self._final / MARKER, marker)
        self._began = False
        self._remove_folder()

    def discard(self) -> None:
        # What other processes put is left to the next save: this one may be just about to publish it.
        if self._began:
            with suppress(OSError):
                self._store.delete_below(self._final)
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


class _PutFiles:
    """Growing files in a local folder, put whole from time to time."""

    open: list[_PutFiles] = []

    def __init__(self, store: ObjectStore, folder: StorePath, names: tuple[str, ...]) -> None:
        self._thread: threading.Thread | None = None
        self._warned = False
        self.folder = _work_folder(store)
        self._store = store
        self._place = folder
        self._when = time.monotonic()
        for name in names:
            with suppress(FileNotFoundError):
                store._fetch(f"{folder.address}/{name}", self.folder / name)
        self._seen = self._look()
        self.open.append(self)

    def sync(self, now: bool = True) -> None:
        """Where `now`, done once this returns; otherwise in a thread, and what fails there is tried again later."""
        if now:
            self._join()
            self._put()
        elif time.monotonic() - self._when >= SPOOL_SECONDS and not (self._thread and self._thread.is_alive()):
            self._when = time.monotonic()
            self._thread = threading.Thread(target=self._try_to_put, name="spool", daemon=True)
            self._thread.start()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _try_to_put(self) -> None:
        try:
            self._put()
        except OSError as error:
            if not self._warned:
                warnings.warn(f"{self._place}: what grows there is put later ({error})", stacklevel=1)
            self._warned = True

    def _put(self) -> None:
        looks = self._look()
        for name, look in looks.items():
            if look != self._seen.get(name):
                self._store.put(f"{self._place.address}/{name}", self.folder / name)
                self._seen[name] = look
        self._when = time.monotonic()

    def close(self) -> None:
        if self in self.open:
            self.open.remove(self)
            try:
                self.sync()
            finally:
                shutil.rmtree(self.folder, ignore_errors=True)

    def _look(self) -> dict[str, tuple[int, int]]:
        paths = [path for path in sorted(self.folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
        stats = {path.relative_to(self.folder).as_posix(): path.stat() for path in paths}
        return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


class _PutRecords:
    """Records by `put_new`."""

    def __init__(self, store: ObjectStore, folder: StorePath, name: str) -> None:
        self._store = store
        self._folder = folder
        self._name = name
        self._pattern = re.compile(rf"\.{re.escape(name)}\.(\d+)")
        self._made = 0
        self._ours: list[bytes] = []

    def prepare(self) -> None:
        pass

    def numbers(self) -> list[int]:
        found = map(self._pattern.fullmatch, self._store.sizes(self._folder))
        return sorted(int(match[1]) for match in found if match)

    def read(self, number: int) -> bytes | None:
        try:
            return (self._folder / self.name(number)).read_bytes()
        except FileNotFoundError:
            return None

    def name(self, number: int) -> str:
        return f".{self._name}.{number}"

    def identity(self, number: int) -> int:
        return 0

    def make(self, number: int, content: Callable[[int], bytes]) -> bool:
        self._made, self._ours = number, [content(0)]
        with self._file(self._ours[0]) as file:
            return self._store.put_new(f"{self._folder.address}/{self.name(number)}", file)

    def rewrite(self, content: bytes) -> None:
        if (there := self.read(self._made)) is not None and there in self._ours:
            self._ours = [there, content]  # a put that failed may have come through all the same
            with self._file(content) as file:
                self._store.put(f"{self._folder.address}/{self.name(self._made)}", file)

    def remove(self, number: int) -> None:
        self._store.delete(f"{self._folder.address}/{self.name(number)}")

    def close(self) -> None:
        pass

    def tidy(self) -> None:
        pass

    @contextmanager
    def _file(self, content: bytes) -> Iterator[Path]:
        with _temporary_folder() as folder:
            (folder / "record").write_bytes(content)
            yield folder / "record"
