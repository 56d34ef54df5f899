"""Cutting text into parts that machines and processes prepare apart, and reading the documents of one part.

The cut depends on the files' names and sizes alone, never on who does the work: then any number of workers, stopped as
often as one likes, writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from llama_dyt.data.formats.bad_records import BadRecords, remedy_for
from llama_dyt.data.formats.compressed import is_packed
from llama_dyt.data.formats.fetched import readable
from llama_dyt.data.formats.format import reader_of
from llama_dyt.data.formats.record_files import DataFile, Piece, Place
from llama_dyt.data.formats.sources import ReadOptions

LEAST_PART_BYTES = 64 << 20
MOST_PART_BYTES = 1 << 30
MANY_PARTS = 1024
_UNPACKED_TIMES = 4  # a guess at how much more text than bytes a packed file holds; it only says what is small


@dataclass(frozen=True)
class Part:
    """What one process prepares at a time.

    Attributes:
        pieces: of files; empty where the source is none.
        size: in bytes.
        turn: the number by which parts are dealt out to machines, those of one file that is fetched to the same; None
            takes the part's own.
    """

    number: int
    pieces: tuple[Piece, ...]
    size: int
    turn: int | None = None

    def is_of(self, rank: int, world_size: int) -> bool:
        """Whether it is a machine's share."""
        return (self.number if self.turn is None else self.turn) % world_size == rank


def bad_records(options: ReadOptions) -> BadRecords:
    """What becomes of records that cannot be used."""

    def remedy(path: Path) -> str:
        return remedy_for(lambda: reader_of(path.name).beginning(path, options), options.reader)

    return BadRecords(options.skip_bad_lines, remedy)


def part_bytes_of(files: Sequence[DataFile]) -> int:
    """How large a part shall be: a thousandth of the corpus, between 64 MB and 1 GB."""
    total = sum(file.size for file in files)
    return min(max(total // MANY_PARTS, LEAST_PART_BYTES), MOST_PART_BYTES)


def cut_parts(files: Sequence[DataFile], part_bytes: int) -> list[Part]:
    """Cut files, in their order, into parts of about `part_bytes`.

    A large file is cut where its format can be (.jsonl at lines, .parquet at row groups); a packed one, which can only
    be read from its start, is not; small files are put together. Parts of one file that has to be fetched are dealt
    out to one machine.
    """
    parts: list[Part] = []
    pieces: list[Piece] = []
    size = weight = 0
    for file in files:
        packed = is_packed(file.name)
        count = max(1, file.size // part_bytes) if reader_of(file.name).can_cut(file.name) else 1
        borders = [file.size * number // count for number in range(count)]
        for start, stop in zip(borders, [*borders[1:], None]):
            length = (file.size if stop is None else stop) - start
            more = length * (_UNPACKED_TIMES if packed else 1)
            if pieces and weight + more > part_bytes:
                parts.append(Part(len(parts), tuple(pieces), size))
                pieces, size, weight = [], 0, 0
            pieces.append(Piece(str(file.path), file.name, start, stop))
            size, weight = size + length, weight + more
    if pieces:
        parts.append(Part(len(parts), tuple(pieces), size))
    if all(file.fetch is None for file in files):
        return parts
    turns = accumulate(int(part.pieces[0].start == 0) for part in parts)  # others go on with the file of the one before
    return [replace(part, turn=turn - 1) for part, turn in zip(parts, turns, strict=True)]


def read_part(
    part: Part, place: list[int] | None, options: ReadOptions, bad: BadRecords
) -> Iterator[tuple[str, list[int]]]:
    """Yields (text, place after it) for each document of a part from a place on; None is its start.

    A place is [piece, offset, line]; the offset is that of `record_files.Place`.

    Raises:
        DataError: a file cannot be read, or a record not be used.
    """
    first, offset, line = place or (0, None, 1)
    for number, piece in enumerate(part.pieces[first:], first):
        begin = None if offset is None else Place(offset, line)
        for values, after in _read_piece(piece, begin, options, bad):
            yield values[0], [number, after.offset, after.line]
        offset, line = None, 1


def _read_piece(
    piece: Piece, place: Place | None, options: ReadOptions, bad: BadRecords
) -> Iterator[tuple[tuple[str, ...], Place]]:
    reader = reader_of(piece.name)
    with readable(piece.path) as path:
        if piece.is_whole:
            yield from reader.read(DataFile(path, piece.name, 0), place or Place(), options, bad)
        else:
            yield from reader.read_piece(replace(piece, path=str(path)), place, options, bad)
