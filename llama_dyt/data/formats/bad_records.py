"""What to do about a record that cannot be used: leave it out where it is one of few, else mend its file's form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.record_files import RecordReader

LEAVE_OUT = "correct it, or pass --skip_bad_lines to leave such lines out"
_BUFFER = 1 << 20


@dataclass(frozen=True)
class Beginning:
    """What the first records of a file are like.

    Attributes:
        usable, bad: how many of them.
        records: as objects; None where there are only columns, which all rows have alike.
        wrong_form: what is wrong with the file as a whole, and what to do; None where its records are to blame.
    """

    usable: int
    bad: int
    records: list[dict[str, Any]] | None = None
    wrong_form: str | None = None


def remedy_for(beginning: Callable[[], Beginning], reader: RecordReader) -> str:
    """What to do about a bad record of a file, told by the file's beginning.

    Only where half of the records there can be used would leaving out the others lose a few lines. Elsewhere it would
    lose the text: the file is of another form than it should be, or its text in another field.
    """
    try:
        found = beginning()
    except Exception:  # the record itself is what the user is told of
        return LEAVE_OUT
    if found.usable >= found.bad:
        return LEAVE_OUT
    if found.wrong_form is not None:
        return found.wrong_form
    kinds: dict[str, set[str]] = {}
    lengths: dict[str, int] = {}
    for record in found.records or ():
        for name, value in record.items():
            kinds.setdefault(name, set()).add(type(value).__name__)
            lengths[name] = lengths.get(name, 0) + (len(value) if isinstance(value, str) else 0)
    return reader.remedy(kinds, sorted(lengths, key=lambda name: -lengths[name]))


class BadRecords:
    """Counts unusable records, or refuses the first.

    Args:
        skip: count them.
        remedy: (file) → what to do about a bad record of it.
    """

    def __init__(self, skip: bool, remedy: Callable[[Path], str]):
        self.skip = skip
        self._remedy = remedy
        self.count = 0

    def __call__(self, path: Path, where: str, reason: str) -> None:
        if not self.skip:
            raise DataError(f"{path}, {where}: {reason}; {self._remedy(path)}", about=path)
        self.count += 1

    def at(self, path: str, offset: int, reason: str) -> None:
        """The same for the line at a byte of a file, whose number is only counted where somebody will read it."""
        self(Path(path), "" if self.skip else f"line {_count_lines(path, offset) + 1}", reason)


def _count_lines(path: str, stop: int) -> int:
    """Line ends before byte `stop`."""
    count = 0
    with open(path, "rb") as stream:
        while stop > 0 and (block := stream.read(min(stop, _BUFFER))):
            count += block.count(b"\n")
            stop -= len(block)
    return count
