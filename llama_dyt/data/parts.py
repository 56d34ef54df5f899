"""Cutting text into parts that machines and processes prepare apart, and reading the documents of one part.

Its own file because the cut must depend on the files' names and sizes alone, never on who does the work: then any
number of workers, stopped as often as one likes, writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_dyt.data.files import (
    PARQUET_SUFFIX,
    DataFile,
    Place,
    check_columns,
    check_text,
    parse_json_line,
    read_records,
)
from llama_dyt.errors import DataError

FIELD = "text"
LEAST_PART_BYTES = 64 << 20
MOST_PART_BYTES = 1 << 30
_MANY_PARTS = 1024
_PACKED = (".gz", ".zst")
_UNPACKED_TIMES = 4  # a guess at how much more text than bytes a packed file holds; it only says what is small
_BUFFER = 1 << 20
_ROWS = 256


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


@dataclass(frozen=True)
class Part:
    """What one process prepares at a time. `pieces` is empty for a dataset of the hub; `size` is in bytes of files."""

    number: int
    pieces: tuple[Piece, ...]
    size: int


class BadRecords:
    """Counts unusable records, or refuses the first."""

    def __init__(self, skip: bool):
        self._skip = skip
        self.count = 0

    def __call__(self, reason: str) -> None:
        if not self._skip:
            raise DataError(f"{reason}; correct it, or pass --skip_bad_lines to leave such lines out")
        self.count += 1

    def at(self, path: str, offset: int, reason: str) -> None:
        """The same for the line at a byte of a file, whose number is only counted where somebody will read it."""
        self(reason if self._skip else f"{path}, line {_count_lines(path, offset) + 1}: {reason}")


def part_bytes_of(files: Sequence[DataFile]) -> int:
    """How large a part shall be: a thousandth of the corpus, between 64 MB and 1 GB."""
    total = sum(file.size for file in files)
    return min(max(total // _MANY_PARTS, LEAST_PART_BYTES), MOST_PART_BYTES)


def cut_parts(files: Sequence[DataFile], part_bytes: int) -> list[Part]:
    """Cut files, in their order, into parts of about `part_bytes`.

    A large .jsonl or .parquet file is cut at lines or row groups; a packed file, which can only be read from its start,
    is never cut; small files are put together.
    """
    parts: list[Part] = []
    pieces: list[Piece] = []
    size = weight = 0
    for file in files:
        is_packed = file.name.endswith(_PACKED)
        count = 1 if is_packed else max(1, file.size // part_bytes)
        borders = [file.size * number // count for number in range(count)]
        for start, stop in zip(borders, [*borders[1:], None]):
            length = (file.size if stop is None else stop) - start
            more = length * (_UNPACKED_TIMES if is_packed else 1)
            if pieces and weight + more > part_bytes:
                parts.append(Part(len(parts), tuple(pieces), size))
                pieces, size, weight = [], 0, 0
            pieces.append(Piece(str(file.path), file.name, start, stop))
            size, weight = size + length, weight + more
    if pieces:
        parts.append(Part(len(parts), tuple(pieces), size))
    return parts


def read_part(part: Part, place: list[int] | None, bad: BadRecords) -> Iterator[tuple[str, list[int]]]:
    """Yields (text, place after it) for each document of a part from a place on; None is its start.

    A place is [piece, offset, line]; the offset is that of `files.Place`.

    Raises:
        DataError: a file cannot be read, or a record not be used.
    """
    first, offset, line = place or (0, None, 1)
    for number, piece in enumerate(part.pieces[first:], first):
        for text, after in _read_piece(piece, None if offset is None else Place(offset, line), bad):
            yield text, [number, after.offset, after.line]
        offset, line = None, 1


def _read_piece(piece: Piece, place: Place | None, bad: BadRecords) -> Iterator[tuple[str, Place]]:
    if piece.is_whole:
        file = DataFile(Path(piece.path), piece.name, 0)
        for values, after in read_records(file, (FIELD,), place or Place(), bad):
            yield values[0], after
    elif piece.name.endswith(PARQUET_SUFFIX):
        yield from _read_row_groups(piece, place, bad)
    else:
        yield from _read_lines(piece, place, bad)


def _read_lines(piece: Piece, place: Place | None, bad: BadRecords) -> Iterator[tuple[str, Place]]:
    """The lines that begin in a piece of a plain file."""
    try:
        with open(piece.path, "rb", buffering=_BUFFER) as stream:
            if place is not None:
                offset = place.offset
                stream.seek(offset)
            elif piece.start:
                stream.seek(piece.start - 1)  # a line that begins at `start` itself has its predecessor's end before it
                offset = piece.start - 1 + len(stream.readline())
            else:
                offset = 0
            while piece.stop is None or offset < piece.stop:
                line = stream.readline()
                if not line:
                    return
                begin, offset = offset, offset + len(line)
                if line.isspace():
                    continue
                values = parse_json_line(line, (FIELD,))
                if isinstance(values, str):
                    bad.at(piece.path, begin, values)
                else:
                    yield values[0], Place(offset)
    except OSError as error:
        raise DataError(
            f"{piece.path}: cannot be read ({error.strerror}); check the disk and the file's rights"
        ) from error


def _read_row_groups(piece: Piece, place: Place | None, bad: BadRecords) -> Iterator[tuple[str, Place]]:
    """The rows of those row groups of a parquet file whose first byte is in the piece."""
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(piece.path) as parquet:
            check_columns(Path(piece.path), parquet.schema_arrow, (FIELD,))
            for group in range(parquet.metadata.num_row_groups):
                metadata = parquet.metadata.row_group(group)
                begin, row = row, row + metadata.num_rows
                offset = _first_byte(metadata)
                ours = piece.start <= offset and (piece.stop is None or offset < piece.stop)
                if not ours or (place is not None and row <= place.offset):
                    continue
                at = begin
                for batch in parquet.iter_batches(batch_size=_ROWS, row_groups=[group], columns=[FIELD]):
                    for text in batch.column(0).to_pylist():
                        at += 1
                        if place is not None and at <= place.offset:
                            continue
                        if reason := check_text(text, FIELD):
                            bad(f"{piece.path}, row {at - 1}: {reason}")
                        else:
                            yield text, Place(at)
    except (OSError, pyarrow.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{piece.path}, row {row}: not a valid parquet file ({reason}); fetch or write it again"
        ) from error


def _first_byte(row_group) -> int:
    column = row_group.column(0)
    if column.has_dictionary_page:
        return min(column.dictionary_page_offset, column.data_page_offset)
    return column.data_page_offset


def _count_lines(path: str, stop: int) -> int:
    """Line ends before byte `stop`."""
    count = 0
    with open(path, "rb") as stream:
        while stop > 0 and (block := stream.read(min(stop, _BUFFER))):
            count += block.count(b"\n")
            stop -= len(block)
    return count
