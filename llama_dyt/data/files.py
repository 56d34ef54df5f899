"""Reading records out of local files: JSON lines (plain, gzip, zstandard) and parquet, with exact places to go on from.

Its own file because everything that depends on a file format is here; `sources.py` knows only files and records.
A place is the offset in the uncompressed bytes (JSON lines) or the row (parquet), so it survives any reader.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_dyt.errors import DataError

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
COMPRESSIONS = ("", ".gz", ".zst")
PARQUET_SUFFIX = ".parquet"
_READ_BYTES = 1 << 20
_READ_PACKED_BYTES = 1 << 17  # what it unpacks to, thousands of times as much at worst, has to fit in memory
_BLOCK_BYTES = 1 << 18
_PARQUET_ROWS = 256


@dataclass(frozen=True)
class DataFile:
    """One file of a dataset: where it lies, its name relative to the dataset (for positions), its size in bytes."""

    path: Path
    name: str
    size: int


@dataclass(frozen=True)
class Place:
    """Where the next record of a file begins: byte offset and 1-based line, or for parquet the row (line unused).

    `frame` is where a compressed file can be read from to come to it; None for its beginning.
    """

    offset: int = 0
    line: int = 1
    frame: tuple[int, int] | None = None


BadRecord = Callable[[str], None]
"""Called with a one-line reason for each record that cannot be used; raises, or counts and returns."""


def is_json_lines(name: str) -> bool:
    return any(name.endswith(suffix + packed) for suffix in JSON_SUFFIXES for packed in COMPRESSIONS)


def is_data_file(name: str) -> bool:
    """Whether a file's name is one of the formats read here."""
    return name.endswith(PARQUET_SUFFIX) or is_json_lines(name)


class _PackedReader(io.RawIOBase):
    """Uncompressed bytes of a .zst file of any number of frames, or a .gz file of any number of members.

    It knows where each frame began, so that reading can go on there. Unlike zstandard's own reader, which calls a
    truncated frame a clean end of file, it raises EOFError there.

    Args:
        frame: (offset in the file, offset in the uncompressed bytes) at which a frame begins, to begin there.
    """

    def __init__(self, path: Path, frame: tuple[int, int] = (0, 0)):
        self._new_frame = _gzip_member if path.name.endswith(".gz") else _zstd_frame
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
        self._file.seek(frame[0])
        self._frame = None
        self._packed = b""
        self._plain = memoryview(b"")
        self._num_packed, self._num_plain = frame  # bytes that frames have taken in and given
        self._frames = deque([frame])

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._plain:
            if not self._packed:
                self._packed = self._file.read(_READ_PACKED_BYTES)
                if not self._packed:
                    if self._frame is not None:
                        raise EOFError("its last frame is not complete")
                    return 0
            if self._frame is None:
                padding = len(self._packed) - len(self._packed.lstrip(b"\0"))
                if padding:  # tape blocks: both formats allow zeros, or nothing that begins with them, after a frame
                    self._num_packed += padding
                    self._packed = self._packed[padding:]
                    continue
                self._frames.append((self._num_packed, self._num_plain))
                self._frame = self._new_frame()
            plain = self._frame.decompress(self._packed)
            self._num_packed += len(self._packed)
            self._num_plain += len(plain)
            self._packed = b""
            self._plain = memoryview(plain)
            if self._frame.eof:
                self._packed = self._frame.unused_data
                self._num_packed -= len(self._packed)
                self._frame = None
        count = min(len(buffer), len(self._plain))
        buffer[:count] = self._plain[:count]
        self._plain = self._plain[count:]
        return count

    def frame_of(self, offset: int) -> tuple[int, int]:
        """The last frame that began at or before an uncompressed offset; later calls must not ask for earlier ones."""
        while len(self._frames) > 1 and self._frames[1][1] <= offset:
            self._frames.popleft()
        return self._frames[0]

    def close(self) -> None:
        self._file.close()
        super().close()


def _gzip_member():
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


def _zstd_frame():
    import zstandard

    # The Pile and RedPajama are packed with long windows, which the default limit refuses.
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


def _is_packed(path: Path) -> bool:
    return path.name.endswith(COMPRESSIONS[1:])


def open_bytes(path: Path, frame: tuple[int, int] = (0, 0)) -> io.BufferedIOBase:
    """Opens a file for reading its uncompressed bytes, from a frame of it on where it is a compressed one."""
    if _is_packed(path):
        return io.BufferedReader(_PackedReader(path, frame), _READ_BYTES)
    return open(path, "rb", buffering=_READ_BYTES)


def _open_at(file: DataFile, place: Place) -> io.BufferedIOBase:
    """The uncompressed bytes from a place on: a plain file seeks, a compressed one is read from that place's frame."""
    stream = open_bytes(file.path, place.frame or (0, 0))
    try:
        if not _is_packed(file.path):
            stream.seek(place.offset)
            return stream
        left = place.offset - (place.frame or (0, 0))[1]
        while left > 0:
            block = stream.read(min(left, _READ_BYTES))
            if not block:
                raise DataError(
                    f"{file.path}: ends before the place to go on from; restore the file that the run began with"
                )
            left -= len(block)
    except BaseException:
        stream.close()
        raise
    return stream


def _frame_at(stream: io.BufferedIOBase, offset: int) -> tuple[int, int] | None:
    """The frame of a compressed file to read a place from; None where that is its first, or it is not compressed."""
    raw = getattr(stream, "raw", None)
    frame = raw.frame_of(offset) if isinstance(raw, _PackedReader) else (0, 0)
    return frame if frame[1] else None


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
        with _open_at(file, place) as stream:
            for line in stream:
                offset += len(line)
                line_number += 1
                if line.isspace():
                    continue
                values = parse_json_line(line, fields)
                if isinstance(values, str):
                    bad(f"{file.path}, line {line_number - 1}: {values}")
                    continue
                yield values, Place(offset, line_number, _frame_at(stream, offset))
    except Exception as error:
        _explain(error, f"{file.path}, line {line_number}")
        raise


def read_line_blocks(file: DataFile, place: Place) -> Iterator[tuple[bytes, int, tuple[int, int] | None]]:
    """Yields (whole lines, their offset, the frame to read them from) from `place` on, unparsed: workers parse them.

    Raises:
        DataError: the file cannot be read or uncompressed.
    """
    offset = place.offset
    try:
        with _open_at(file, place) as stream:
            while block := stream.read(_BLOCK_BYTES):
                block += stream.readline()
                yield block, offset, _frame_at(stream, offset)
                offset += len(block)
    except Exception as error:
        _explain(error, f"{file.path}, near byte {offset:,}")
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
