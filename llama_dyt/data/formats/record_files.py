"""Files of records and places in them, whatever their format: what reads a file, and how what is wrong is told."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol

from llama_dyt.core.errors import DataError
from llama_dyt.core.store_path import StorePath

Fetched = tuple[Path, IO[str]]
"""A copy of a file on this machine, and what has it stay until it is closed."""


@dataclass(frozen=True)
class DataFile:
    """One file of a dataset: where it lies, its name relative to the dataset (for positions), its size in bytes, which
    is None where nobody has asked for it yet.

    `fetch` makes a copy on this machine, where it is not there; it is read as `fetched.on_this_machine` gives it.
    """

    path: Path | StorePath
    name: str
    size: int | None
    fetch: Callable[[], Fetched] | None = None


@dataclass(frozen=True)
class Place:
    """Where the next record of a file begins: byte offset and 1-based line, or for parquet the row (line unused).

    `frame` is where a compressed file can be read from to come to it; None for its beginning.
    """

    offset: int = 0
    line: int = 1
    frame: tuple[int, int] | None = None


@dataclass(frozen=True)
class Piece:
    """Bytes `start` to `stop` of a file (`stop` None: to its end): the lines or row groups that begin in them."""

    path: str
    name: str
    start: int
    stop: int | None

    @property
    def is_whole(self) -> bool:
        return self.start == 0 and self.stop is None


_MOST_FIELDS = 8

BadRecord = Callable[[Path, str, str], None]
"""Called with (file, where in it, reason) for each record that cannot be used; raises, or counts and returns."""


def check_text(value: object, field: str) -> str | None:
    """The reason why a field's value is not usable text, or None when it is."""
    if value is None:
        return f"has no field '{field}'"
    if not isinstance(value, str):
        return f"field '{field}' is {type(value).__name__}, not a string"
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return f"field '{field}' holds half of a surrogate pair, which is not valid Unicode"
    return None


class RecordReader(Protocol):
    """What is taken of a record.

    Attributes:
        mark: stands in fingerprints; changes when what is taken does.
    """

    @property
    def mark(self) -> str: ...

    def pick(self, record: Mapping[str, Any]) -> tuple[Any, ...] | str:
        """The values of a record, the first of them text, or the reason why they cannot be had."""

    def wanted(self, available: Sequence[str]) -> list[str]:
        """Of the columns that a file has, those to read; of others none is looked at."""

    def with_columns(self, columns: Mapping[str, str]) -> RecordReader:
        """The same where the data call some columns otherwise."""

    def remedy(self, kinds: Mapping[str, set[str]], longest: Sequence[str]) -> str:
        """What to do about a file most of whose records cannot be used.

        Args:
            kinds: column → names of the types of its values; empty where only columns are known, and they are right.
            longest: the columns, those with most text first.
        """


@dataclass(frozen=True)
class TextFields:
    """Takes the texts of some fields, in their order; all must be there."""

    fields: tuple[str, ...]
    mark: str = ""

    def pick(self, record: Mapping[str, Any]) -> tuple[str, ...] | str:
        values = tuple(record.get(field) for field in self.fields)
        for value, field in zip(values, self.fields, strict=True):
            if reason := check_text(value, field):
                return reason
        return values

    def wanted(self, available: Sequence[str]) -> list[str]:
        return list(self.fields)

    def remedy(self, kinds: Mapping[str, set[str]], longest: Sequence[str]) -> str:
        wrong = next((number for number, name in enumerate(self.fields) if kinds.get(name) != {"str"}), 0)
        texts = [name for name in longest if kinds[name] == {"str"}]
        if not kinds:
            return "most rows are so: " + name_the_field(self.fields, wrong, texts)
        there = ", ".join(f"{name} ({'/'.join(sorted(kind))})" for name, kind in islice(kinds.items(), _MOST_FIELDS))
        more = f" and {len(kinds) - _MOST_FIELDS} more" if len(kinds) > _MOST_FIELDS else ""
        return f"its records have {there}{more}: {name_the_field(self.fields, wrong, texts)}"


def name_the_field(fields: Sequence[str], number: int, texts: Sequence[str]) -> str:
    """Which flag names field `number` of `fields`, with a field of `texts` as an example."""
    flag = (("text_field",) if len(fields) == 1 else ("prompt_field", "completion_field"))[number]
    example = next((name for name in texts if name not in fields), None)
    return f"name the one to read with --{flag}" + (f", such as --{flag} {example}" if example else "")


def explain(error: Exception, where: str) -> None:
    """Raises a DataError of one line for what the readers underneath raise; returns for anything else."""
    if isinstance(error, DataError):
        return
    if isinstance(error, EOFError):
        message = f"the compressed file is cut off ({error}); fetch or pack it again"
    elif isinstance(error, zlib.error) or type(error).__name__ == "ZstdError":
        message = f"not a valid compressed file ({error}); fetch or pack it again"
    elif type(error).__name__.startswith("Arrow"):
        message = f"not a valid parquet file ({_first_line(error)}); fetch or write it again"
    elif isinstance(error, ImportError):
        message = f"needs the package {error.name}; run `pip install {error.name}`"
    elif isinstance(error, OSError):
        message = f"cannot be read ({error.strerror or _first_line(error)}); check the disk and the file's rights"
    else:
        return
    raise DataError(f"{where}: {message}", about=where) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def stat_file(path: Path, name: str) -> DataFile:
    """A DataFile for a path. Raises DataError when it is not a readable file."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check the path and its rights", about=path
        ) from error
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: no right to read it; change its rights", about=path)
    return DataFile(path, name, size)
