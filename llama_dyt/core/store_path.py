"""A place in a store: an address that reads like a `pathlib.Path`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import IO, Protocol


class Lists(Protocol):
    """What reading a store takes (`core.object_store.ObjectStore`)."""

    def copy_of(self, place: StorePath) -> tuple[Path, IO[str]]: ...

    def list(self, address: str) -> dict[str, int]: ...

    def read(self, address: str) -> bytes: ...


@dataclass(frozen=True)
class StorePath:
    """A place in a store, with as much of pathlib's reading as the program uses."""

    store: Lists
    address: str

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, name: str) -> StorePath:
        return StorePath(self.store, f"{self.address}/{name}")

    @property
    def name(self) -> str:
        return PurePosixPath(self.address).name

    @property
    def parent(self) -> StorePath:
        return StorePath(self.store, self.address.rpartition("/")[0])

    def with_name(self, name: str) -> StorePath:
        return self.parent / name

    def absolute(self) -> StorePath:
        return self

    resolve = expanduser = absolute

    def is_file(self) -> bool:
        return self.address in self.store.list(self.address)

    def is_dir(self) -> bool:
        return any(name != self.address for name in self.store.list(self.address))

    def exists(self) -> bool:
        return bool(self.store.list(self.address))

    def stat(self) -> SimpleNamespace:
        return SimpleNamespace(st_size=self.store.list(self.address)[self.address])

    def read_bytes(self) -> bytes:
        return self.store.read(self.address)

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)
