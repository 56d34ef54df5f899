"""The seam of `-d`: a format says which names of datasets are its own, and opens them as a source.

Each of ours is a file in this folder with a `FORMAT`; a user's own is a module given to `--import`, which calls
`FORMATS.register`. What reads single files of records derives from `FileFormat`, and works in folders, globs and
mixtures, beside others, and in prepare_data.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from llama_dyt.core.errors import ConfigurationError, DataError
from llama_dyt.core.registry import Registry
from llama_dyt.data.formats.bad_records import BadRecords, Beginning
from llama_dyt.data.formats.file_source import FileSource
from llama_dyt.data.formats.record_files import BadRecord, DataFile, Piece, Place, explain
from llama_dyt.data.formats.sources import ReadOptions, Source

_MOST_RECORDS = 200


class Format:
    """One kind of dataset.

    Attributes:
        name: for messages, and of its settings in a run (`run.NAME`).
        settings: a dataclass of flags of its own, or None.
        order: formats are asked in this order, and the first that matches is taken. Ours: the sample 0, prepared tokens
            10 to 30, stores' 40, named files 60, folders 70, the hub 90.
        is_tokenized: what it opens are tokens, which pretraining alone can use.
        is_remote: looking at what a name means asks the network.
        suffixes: of the single files that it reads, in lower case; empty for what takes a dataset as a whole.
    """

    name: str
    settings: type | None = None
    order: int = 50
    is_tokenized: bool = False
    is_remote: bool = False
    suffixes: tuple[str, ...] = ()

    def matches(self, dataset: str) -> bool:
        """Whether a name is one of its own, by the name and by first bytes at most; raises nothing."""
        raise NotImplementedError(f"{type(self).__name__}.matches")

    def open(self, dataset: str, options: ReadOptions) -> Source:
        """What a name means.

        Raises:
            DataError: nothing usable of that name.
        """
        raise NotImplementedError(f"{type(self).__name__}.open")

    def splits(self, dataset: str) -> tuple[str, ...]:
        """The splits that a dataset was made with; `train` is what `-d` means."""
        return ("train",)

    def tokenizer_beside(self, dataset: str) -> str | None:
        """The folder of the tokenizer that made a dataset's tokens; None where it does not lie beside them."""
        return None

    def own_settings(self, options: ReadOptions) -> Any:
        """Its settings in a run; None where it has none."""
        return None if self.settings is None else options.settings.get(self.name) or self.settings()


class FileFormat(Format):
    """Files of records, each an object with named fields. `suffixes` and `records` are all that one has to give.

    Attributes:
        shown: suffixes in messages.
        only_where_named: suffixes of files that are passed over where they are only found in a folder.
        has_lines: its files are JSON lines, which workers parse; lines_by_name: all are, whatever they hold.
    """

    order = 60
    only_where_named: tuple[str, ...] = ()
    has_lines: bool = False
    lines_by_name: bool = False

    def has_lines_in(self, path: Path) -> bool:
        """Whether this file is of JSON lines; asked where `has_lines`."""
        return self.has_lines

    @property
    def shown(self) -> tuple[str, ...]:
        return self.suffixes

    def records(self, path: Path, first: int, settings: Any) -> Iterator[Mapping[str, Any]]:
        """The records of a file from number `first` on, the first of all being 0.

        Args:
            settings: an object of `self.settings`; None where it has none.
        """
        raise NotImplementedError(f"{type(self).__name__}.records")

    def matches(self, dataset: str) -> bool:
        return dataset.lower().endswith(self.suffixes)

    def open(self, dataset: str, options: ReadOptions) -> Source:
        return open_files(dataset, options)

    def read(
        self, file: DataFile, place: Place, options: ReadOptions, bad: BadRecord
    ) -> Iterator[tuple[tuple[str, ...], Place]]:
        """Yields (values of the fields, place after the record) for each usable record from a place on.

        Args:
            place: its offset is the number of the record, unless the format overrides this.

        Raises:
            DataError: the file cannot be read, or `bad` raises.
        """
        number = place.offset
        try:
            for record in self.records(file.path, number, self.own_settings(options)):
                number += 1
                values = options.reader.pick(record)
                if isinstance(values, str):
                    bad(file.path, f"record {number - 1}", values)
                    continue
                yield values, Place(number)
        except DataError:
            raise
        except Exception as error:
            explain(error, f"{file.path}, record {number}")
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise DataError(
                f"{file.path}, record {number}: the format {self.name} cannot read on ({reason}); mend the file or "
                "the format",
                about=file.path,
            ) from error

    def can_cut(self, name: str) -> bool:
        """Whether pieces of a file of this name can be read by themselves, by `read_piece`."""
        return False

    def read_piece(
        self, piece: Piece, place: Place | None, options: ReadOptions, bad: BadRecords
    ) -> Iterator[tuple[tuple[str, ...], Place]]:
        """The records that begin in a piece, from a place in it on; as `read`."""
        raise NotImplementedError(f"{type(self).__name__}.read_piece")

    def beginning(self, path: Path, options: ReadOptions) -> Beginning:
        """What the first records of a file are like; may raise anything."""
        usable, records = 0, []
        for record in islice(self.records(path, 0, self.own_settings(options)), _MOST_RECORDS):
            records.append(dict(record))
            usable += not isinstance(options.reader.pick(record), str)
        return Beginning(usable, len(records) - usable, records)


class Formats(Registry[Format]):
    """Formats by name, of which each suffix has one."""

    def register(self, entry: Format) -> Format:
        """As `Registry.register`; ConfigurationError also where a suffix is taken."""
        for other in self:
            if other is not entry and (both := set(entry.suffixes) & set(other.suffixes)):
                raise ConfigurationError(
                    f"{min(both)} files are read by the format {other.name!r} already; let {entry.name!r} have other "
                    "suffixes"
                )
        return super().register(entry)


FORMATS = Formats("format", "llama_dyt.data.formats", "FORMAT", in_workers=True)


def format_of(dataset: str, tokens: bool = True) -> Format:
    """The format of what a name means; the last of them takes every name.

    Args:
        tokens: whether it may be one of tokens; where several fields of a record are asked for it may not.
    """
    asked = sorted(FORMATS, key=lambda format: format.order)
    return next(format for format in asked if (tokens or not format.is_tokenized) and format.matches(dataset))


def readers() -> list[FileFormat]:
    """What reads single files."""
    return [format for format in FORMATS if format.suffixes]


def reader_of(name: str) -> FileFormat | None:
    """What reads a file of this name, its suffix in any case; None where nothing does."""
    return next((reader for reader in readers() if name.lower().endswith(reader.suffixes)), None)


def open_files(dataset: str, options: ReadOptions) -> FileSource:
    """The records of a folder's, a glob's or one file's, whatever their formats."""
    return FileSource(dataset, readers(), options)


def settings_in(groups: Mapping[str, Any]) -> dict[str, Any]:
    """Name of a format → its settings, of those that have some, from a run's groups."""
    return {format.name: groups[format.name] for format in FORMATS if format.settings is not None}
