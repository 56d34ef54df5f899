"""Where a run's files are: folders of this machine, or what a scheme stands for (`--save_dir shelf://runs/7`).

A place is a `Path`, or a `StorePath` that reads like one; what changes files asks `store_of(place)`, and nobody needs
to know which of them it is. A store of one's own derives from `core.object_store.ObjectStore`, which makes all of this
of four functions: put, get, list, delete.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from llama_dyt.core import files
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.problem import Problem
from llama_dyt.core.registry import Registry
from llama_dyt.core.store_path import StorePath

Location = Path | StorePath
Say = Callable[[str], None]
MARKER = "COMPLETE"
"""The file that is written last in a folder: where it is, the folder is whole."""

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_LOCAL = "file"


class Staging(Protocol):
    """A folder in the making, seen by nobody until `publish`. Several processes make one together, each with its own
    `Staging` of the same place and nonce; the first of them begins and publishes."""

    def begin(self, say: Say) -> None:
        """Make room; before any other call, by the first process."""

    def folder(self, name: str = "") -> Path:
        """Where this process is to write its files of the folder `name` ("model")."""

    def hand_over(self) -> None:
        """All that this process wrote so far is finished."""

    def publish(self, marker: str, say: Say) -> None:
        """Write the marker, last of all, and have the folder under its name; by the first process.

        An older folder of that name goes.
        """

    def discard(self) -> None:
        """Remove what this process began and did not publish; never fails."""


class Spool(Protocol):
    """Files that grow while a run goes on (metrics, TensorBoard's), written in a local folder.

    Attributes:
        folder: to write in.
    """

    folder: Path

    def sync(self, now: bool = True) -> None:
        """Have what was written in the store; where not `now`, only if the last time is a while ago."""

    def close(self) -> None:
        """The same for the last time."""


class Records(Protocol):
    """Small numbered files in a folder, each made by one process alone: what `launch.claim` is made of."""

    def prepare(self) -> None:
        """Make the folder where it has to be made."""

    def numbers(self) -> list[int]:
        """Those that are there, in order."""

    def read(self, number: int) -> bytes | None:
        """A record; None where it is gone."""

    def name(self, number: int) -> str:
        """Of the file, for messages."""

    def identity(self, number: int) -> int:
        """What a copy of the record does not share with it; 0 where copies cannot be told."""

    def make(self, number: int, content: Callable[[int], bytes]) -> bool:
        """Make a record, durable; False where another has made one of that number.

        Args:
            content: its bytes, of one length always, by its identity.
        """

    def rewrite(self, content: bytes) -> None:
        """Change the record made last, whatever became of its name; never another's. Called from a thread."""

    def remove(self, number: int) -> None:
        """Remove a record; one that is gone is no error."""

    def close(self) -> None:
        """No `rewrite` comes any more."""

    def tidy(self) -> None:
        """Remove the folder if `prepare` made it and nothing came into it."""


class Store(Protocol):
    """Files by address.

    Attributes:
        name: the scheme of its addresses.
    """

    name: str

    def at(self, address: str) -> Location:
        """The place of an address."""

    def why_not_writable(self, place: Location) -> str | None:
        """Why nothing can be written there, or None; leaves nothing behind."""

    def write_text(self, place: Location, text: str) -> None:
        """Write a file, whole or not at all."""

    def sizes(self, folder: Location) -> dict[str, int]:
        """Name relative to `folder` → bytes, of all files below it; empty where it is not there."""

    def local(self, folder: Location, only: str = "") -> Path:
        """A folder of this machine with the same files.

        Args:
            only: fetch the files whose names begin so, where anything has to be fetched.
        """

    def stage(self, final: Location, nonce: str) -> Staging:
        """Begin to make the folder `final`; `nonce` tells this attempt from those of other runs."""

    def folders(self, parent: Location, is_whole: Callable[[Location], bool]) -> dict[str, Location]:
        """Name → folder directly below `parent`, those included to which a killed run did not come to give the name."""

    def home_of(self, folder: Location) -> Location:
        """The name that one of `folders` has, or is to be given."""

    def clear(
        self, parent: Location, is_ours: Callable[[str], bool], is_whole: Callable[[Location], bool], say: Say
    ) -> None:
        """Put in order what killed runs left below `parent`, of folders whose names are ours. Only for who holds it."""

    def remove(self, folder: Location) -> None:
        """Remove a published folder; killed over it, what is left is nobody's and goes with `clear`. Only for who holds
        the folder above."""

    def sync_spools(self) -> None:
        """Have in the store what this process has written into its spools so far."""

    def spool(self, folder: Location, *names: str) -> Spool:
        """Begin to write growing files in `folder`; those of `names` are there as they are in the store."""

    def records(self, folder: Location, name: str) -> Records:
        """The records `.name.NUMBER` of a folder."""


STORES: Registry[Store] = Registry("store", "llama_dyt.core.stores", "STORE")


def store_of(place: str | Location) -> Store:
    """The store of a place, or of an address.

    Raises:
        ConfigurationError: no store has its scheme.
    """
    scheme = SCHEME.match(str(place))
    return STORES.get(scheme[1] if scheme else _LOCAL)


def at(address: str, flag: str = "save_dir") -> Location:
    """The location of an address: "runs/7" or "shelf://runs/7".

    Args:
        flag: by which it was given, for messages.

    Raises:
        ConfigurationError: no store has its scheme.
    """
    try:
        return store_of(address).at(address)
    except ConfigurationError as error:
        raise ConfigurationError(Problem(flag, address, str(error))) from None


def why_not_at(address: str, flag: str) -> Problem | None:
    """What is wrong with the scheme of an address; None where a store has it."""
    try:
        at(address, flag)
    except ConfigurationError as error:
        return error.problems[0]
    return None


def write_json(place: Location, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    store_of(place).write_text(place, files.to_json(value))
