"""Reading records out of local files: JSON lines (plain, gzip, zstandard) and parquet, with exact places to go on from.

Its own file because everything that depends on a file format is here; `sources.py` knows only files and records.
A place is the offset in the uncompressed bytes (JSON lines) or the row (parquet), so it survives any reader.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_dyt.errors import DataError

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
COMPRESSIONS = ("", ".gz", ".zst")
PARQUET_SUFFIX = ".parquet"
_READ_BYTES = 1 << 20
_PARQUET_ROWS = 256


@dataclass(frozen=True)
class DataFile:
    """One file of a dataset: where it lies, its name relative to the dataset (for positions), its size in bytes."""

    path: Path
    name: str
    size: int


@dataclass(frozen=True)
class Place:
    """Where the next record of a file begins: byte offset and 1-based line, or for parquet the row (line unused)."""

    offset: int = 0
    line: int = 1


BadRecord = Callable[[str], None]
"""Called with a one-line reason for each record that cannot be used; raises, or counts and returns."""


def is_json_lines(name: str) -> bool:
    return any(name.endswith(suffix + packed) for suffix in JSON_SUFFIXES for packed in COMPRESSIONS)


def is_data_file(name: str) -> bool:
    """Whether a file's name is one of the formats read here."""
    return name.endswith(PARQUET_SUFFIX) or is_json_lines(name)


class _ZstdReader(io.RawIOBase):
    """Uncompressed bytes of a .zst file of any number of frames.

    zstandard's own stream_reader returns a clean end of file for a truncated frame; this one raises EOFError.
    """

    def __init__(self, path: Path):
        import zstandard

        # The Pile and RedPajama are packed with long windows, which the default limit refuses.
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
        self._frame = None
        self._packed = b""
        self._plain = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._plain:
            if not self._packed:
                self._packed = self._file.read(_READ_BYTES)
                if not self._packed:
                    if self._frame is not None:
                        raise EOFError("the last zstandard frame is not complete")
                    return 0
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            self._plain = memoryview(self._frame.decompress(self._packed))
            self._packed = b""
            if self._frame.eof:
                self._packed = self._frame.unused_data
                self._frame = None
        count = min(len(buffer), len(self._plain))
        buffer[:count] = self._plain[:count]
        self._plain = self._plain[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def open_bytes(path: Path) -> io.BufferedIOBase:
    """Opens a file for reading its uncompressed bytes."""
    if path.name.endswith(".gz"):
        return gzip.open(path, "rb")
    if path.name.endswith(".zst"):
        return io.BufferedReader(_ZstdReader(path), _READ_BYTES)
    return open(path, "rb", buffering=_READ_BYTES)


def _go_to(stream, file: DataFile, offset: int) -> None:
    if not file.path.name.endswith((".gz", ".zst")):
        stream.seek(offset)
        return
    while offset > 0:  # compressed streams have no index: read up to the place and drop it
        block = stream.read(min(offset, _READ_BYTES))
        if not block:
            raise DataError(
                f"{file.path}: ends before the place to go on from; restore the file that the run began with"
            )
        offset -= len(block)


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


def parse_json_line(line: bytes, fields: Sequence[str]) -> tuple[str, ...] | str:
    """The fields of one JSON line, or, as a plain str, the reason why they cannot be had."""
    try:
        record = json.loads(line.decode().rstrip("\r\n"))  # the column of an error shall be of this line
    except UnicodeDecodeError as error:
        return f"is not UTF-8 (byte {error.start} of the line)"
    except json.JSONDecodeError as error:
        return f"is not valid JSON ({error.msg} at column {error.colno})"
    except (ValueError, RecursionError) as error:
        return f"is not usable JSON ({error})"
    if not isinstance(record, dict):
        return f"is a JSON {type(record).__name__}, not an object; write one object a line"
    values = tuple(record.get(field) for field in fields)
    for value, field in zip(values, fields, strict=True):
        if reason := check_text(value, field):
            return reason
    return values


def read_json_lines(
    file: DataFile, fields: Sequence[str], place: Place, bad: BadRecord
) -> Iterator[tuple[tuple[str, ...], Place]]:
    """Yields (values of `fields`, place after the line) for each line from `place` on; blank lines are passed over.

    Raises:
        DataError: the file cannot be read or uncompressed, or `bad` raises.
    """
    offset, line_number = place.offset, place.line
    try:
        with open_bytes(file.path) as stream:
            _go_to(stream, file, offset)
            for line in stream:
                offset += len(line)
                line_number += 1
                if line.isspace():
                    continue
                values = parse_json_line(line, fields)
                if isinstance(values, str):
                    bad(f"{file.path}, line {line_number - 1}: {values}")
                    continue
                yield values, Place(offset, line_number)
    except Exception as error:
        _explain(error, f"{file.path}, line {line_number}")
        raise


def read_parquet_rows(
    file: DataFile, fields: Sequence[str], place: Place, bad: BadRecord
) -> Iterator[tuple[tuple[str, ...], Place]]:
    """Yields (values of `fields`, place after the row) for each row from `place` on.

    Raises:
        DataError: the file cannot be read, lacks a column of `fields`, or `bad` raises.
    """
    import pyarrow.parquet

    row = place.offset
    try:
        with pyarrow.parquet.ParquetFile(file.path) as parquet:
            check_columns(file.path, parquet.schema_arrow, fields)
            start = 0
            for group in range(parquet.metadata.num_row_groups):
                end = start + parquet.metadata.row_group(group).num_rows
                if end > row:
                    yield from _read_row_group(parquet, group, file, fields, start, row, bad)
                    row = end
                start = end
    except Exception as error:
        _explain(error, f"{file.path}, row {row}")
        raise


def _read_row_group(parquet, group, file, fields, start, first, bad):
    row = start
    for batch in parquet.iter_batches(batch_size=_PARQUET_ROWS, row_groups=[group], columns=list(fields)):
        if row + batch.num_rows <= first:
            row += batch.num_rows
            continue
        columns = [batch.column(batch.schema.get_field_index(field)).to_pylist() for field in fields]
        for values in zip(*columns, strict=True):
            row += 1
            if row <= first:
                continue
            reasons = (check_text(value, field) for value, field in zip(values, fields, strict=True))
            if reason := next(filter(None, reasons), None):
                bad(f"{file.path}, row {row - 1}: {reason}")
                continue
            yield values, Place(row)


def check_columns(path: Path, schema, fields: Sequence[str]) -> None:
    """Raises DataError unless a parquet file's schema has every field of `fields`."""
    for field in fields:
        if schema.get_field_index(field) < 0:
            raise DataError(
                f"{path}: has no column '{field}' (it has {', '.join(schema.names)}); rename the text column"
            )


def read_records(file: DataFile, fields, place: Place, bad: BadRecord) -> Iterator[tuple[tuple[str, ...], Place]]:
    """Reads a file of any known format; see `read_json_lines` and `read_parquet_rows`."""
    read = read_parquet_rows if file.path.name.endswith(PARQUET_SUFFIX) else read_json_lines
    return read(file, fields, place, bad)


def _explain(error: Exception, where: str) -> None:
    """Raises a DataError of one line for what the readers underneath raise; returns for anything else."""
    if isinstance(error, DataError):
        return
    if isinstance(error, EOFError):
        message = f"the compressed file is cut off ({error}); fetch or pack it again"
    elif isinstance(error, (gzip.BadGzipFile, zlib.error)) or type(error).__name__ == "ZstdError":
        message = f"not a valid compressed file ({error}); fetch or pack it again"
    elif type(error).__name__.startswith("Arrow"):
        message = f"not a valid parquet file ({_first_line(error)}); fetch or write it again"
    elif isinstance(error, ImportError):
        message = f"needs the package {error.name}; run `pip install {error.name}`"
    elif isinstance(error, OSError):
        message = f"cannot be read ({error.strerror or _first_line(error)}); check the disk and the file's rights"
    else:
        return
    raise DataError(f"{where}: {message}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def stat_file(path: Path, name: str) -> DataFile:
    """A DataFile for a path. Raises DataError when it is not a readable file."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its rights") from error
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: no right to read it; change its rights")
    return DataFile(path, name, size)
