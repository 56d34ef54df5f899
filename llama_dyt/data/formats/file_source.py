"""Records of local files, one file after the other in sorted order, each read by its own format."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from copy import copy
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.bad_records import BadRecords, Beginning, remedy_for
from llama_dyt.data.formats.fetched import on_this_machine
from llama_dyt.data.formats.lines import read_line_blocks
from llama_dyt.data.formats.matching import Match, MatchedBy, match_files
from llama_dyt.data.formats.record_files import BadRecord, DataFile, Place
from llama_dyt.data.formats.sources import ReadOptions, TextSource, too_few_files


class Reader(MatchedBy, Protocol):
    """What reads the files of one format: `format.FileFormat`."""

    name: str
    lines_by_name: bool

    def has_lines_in(self, path: Path) -> bool: ...

    def own_settings(self, options: ReadOptions) -> Any: ...

    def read(
        self, file: DataFile, place: Place, options: ReadOptions, bad: BadRecord
    ) -> Iterator[tuple[tuple[str, ...], Place]]: ...

    def beginning(self, path: Path, options: ReadOptions) -> Beginning: ...


def place_of(file: DataFile, place: Place, bad_lines: int) -> dict:
    """The JSON-able position of a place in a file."""
    frame = {"frame": list(place.frame)} if place.frame else {}
    return {"file": file.name, "offset": place.offset, "line": place.line, "bad_lines": bad_lines, **frame}


class FileSource(TextSource):
    """Records of local files.

    Args:
        dataset: a folder, file or glob.
        readers: of all formats that there are.
        match: what it means; None for a name of this machine.

    Attributes:
        match: the files to read, sorted, and what was passed over.

    Raises:
        DataError: nothing of that name, no data file in it, or a file that may not be read.
    """

    can_be_shared = True

    def __init__(self, dataset: str, readers: Sequence[Reader], options: ReadOptions, match: Match | None = None):
        match = match or match_files(dataset, readers)
        if match is None:
            raise DataError(f"{dataset}: no such file or folder; check the path", about=dataset)
        self.dataset = dataset
        self.match = match
        self.files = match.files
        self.is_local = all(file.fetch is None for file in match.files)
        self.fields = options.fields
        self.bad_lines = 0
        self._addresses: dict[str, str] = {}  # copies that messages do not speak of
        self._readers = readers
        self._options = options
        self._bad_records = BadRecords(options.skip_bad_lines, self._remedy)
        listing = "\n".join(f"{file.name}\t{file.size}" for file in self.files)
        listing = f"{listing}\n{self.fields}{self._options.reader.mark}{self._marks()}".encode(errors="surrogateescape")
        self.fingerprint = "files:" + hashlib.sha256(listing).hexdigest()[:16]

    def _marks(self) -> str:
        """The settings of the formats here, where some have any."""
        used = {reader.name: reader.own_settings(self._options) for reader in map(self._reader, self.files)}
        return "".join(f"\n{name}\t{settings!r}" for name, settings in used.items() if settings is not None)

    def _reader(self, file: DataFile) -> Reader:
        return next(reader for reader in self._readers if file.path.name.lower().endswith(reader.suffixes))

    def share(self, number: int, count: int) -> FileSource:
        if len(self.files) < count:
            raise too_few_files(self.dataset, len(self.files), count)
        part = copy(self)
        part.files, part.bad_lines = self.files[number::count], 0
        return part

    def iterate(self, position: dict | None = None) -> Iterator[tuple[tuple[str, ...], dict]]:
        files, place, self.bad_lines = self._from(position)
        for file in self._here(files):
            try:
                for values, after in self._reader(file).read(file, place, self._options, self._bad):
                    yield values, place_of(file, after, self.bad_lines)
            except DataError as error:
                raise self._of_address(error) from error
            place = Place()

    def line_blocks(self, position: dict | None = None) -> Iterator[tuple[DataFile, Place, bytes]] | None:
        for file in self.files:
            reader = self._reader(file)
            if not (reader.lines_by_name or (file.fetch is None and reader.has_lines_in(file.path))):
                return None
        return self._line_blocks(position)

    def _line_blocks(self, position: dict | None) -> Iterator[tuple[DataFile, Place, bytes]]:
        files, place, _ = self._from(position)
        for file in self._here(files):
            line = place.line
            try:
                for block, offset, frame in read_line_blocks(file, place):
                    yield file, Place(offset, line, frame), block
                    line = 0
            except DataError as error:
                raise self._of_address(error) from error
            place = Place()

    def _here(self, files: Sequence[DataFile]) -> Iterator[DataFile]:
        for file, local in zip(files, on_this_machine(files), strict=True):
            if file.fetch is not None:
                self._addresses[str(local.path)] = str(file.path)
            yield local

    def _of_address(self, error: DataError) -> DataError:
        """The same about the file of the store, where it is about a copy."""
        local = next((local for local in self._addresses if local in error.message), None)
        if local is None:
            return error
        address = self._addresses[local]
        return DataError(error.message.replace(local, address), address, error.noun)

    def _from(self, position: dict | None) -> tuple[list[DataFile], Place, int]:
        """(files still to read, place in the first of them, bad lines so far) at a position."""
        if position is None:
            return self.files, Place(), 0
        names = [file.name for file in self.files]
        if position["file"] not in names:
            raise DataError(
                f"{self.dataset}: {position['file']}, where the run stopped reading, is gone; restore it",
                about=self.dataset,
            )
        frame = position.get("frame")
        place = Place(position["offset"], position["line"], tuple(frame) if frame else None)
        return self.files[names.index(position["file"]) :], place, position["bad_lines"]

    def _bad(self, path: Path, where: str, reason: str) -> None:
        self.refuse(path, where, reason)
        self.bad_lines += 1

    def refuse(self, path: Path, where: str, reason: str) -> None:
        try:
            self._bad_records(path, where, reason)
        except DataError as error:
            raise self._of_address(error) from error

    def _remedy(self, path: Path) -> str:
        reader = self._reader(DataFile(path, path.name, 0))
        return remedy_for(lambda: reader.beginning(path, self._options), self._options.reader)

    def problems(self) -> list[DataError]:
        """What would stop the run, found quickly: the first file that holds anything is opened, no more."""
        if not any(file.size for file in self.files):
            what = f"{_plural(len(self.files), 'file')}, all empty; give a dataset with text in it"
            return [DataError(f"{self.dataset}: {what}", about=self.dataset)]
        bad_lines = self.bad_lines
        try:
            first_record = next(islice(self.iterate(), 1), None)
        except DataError as error:
            return [error]
        finally:
            self.bad_lines = bad_lines
        if first_record is None:
            what = f"holds no usable record; each must have {' and '.join(self.fields)}"
            return [DataError(f"{self.dataset}: {what}", about=self.dataset)]
        return []

    def in_words(self) -> str:
        return str(self.match)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
