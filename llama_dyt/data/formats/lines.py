"""Lines of JSON: what one holds, and whole lines of a file in blocks, for workers to parse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from llama_dyt.data.formats.compressed import frame_at, open_at
from llama_dyt.data.formats.record_files import DataFile, Place, RecordReader, explain

_BLOCK_BYTES = 1 << 18
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def is_blank(line: bytes) -> bool:
    return line.isspace() or (line.startswith(_BYTE_ORDER_MARK) and not line[len(_BYTE_ORDER_MARK) :].strip())


def parse_json_object(line: bytes) -> dict[str, Any] | str:
    """The object of one JSON line, or, as a plain str, the reason why it cannot be had.

    A byte-order mark is no part of it; files that were put together have one at each of their beginnings.
    """
    try:
        # The column of an error shall be of this line.
        record = json.loads(line.removeprefix(_BYTE_ORDER_MARK).decode().rstrip("\r\n"))
    except UnicodeDecodeError as error:
        if line.startswith(_UTF16):
            return "is UTF-16 by its byte-order mark; convert the file to UTF-8"
        return f"is not UTF-8 (byte {error.start} of the line)"
    except json.JSONDecodeError as error:
        return f"is not valid JSON ({error.msg} at column {error.colno})"
    except (ValueError, RecursionError) as error:
        return f"is not usable JSON ({error})"
    if not isinstance(record, dict):
        return f"is a JSON {type(record).__name__}, not an object"
    return record


def parse_json_line(line: bytes, reader: RecordReader) -> tuple[Any, ...] | str:
    """What a reader takes of one JSON line, or, as a plain str, the reason why it cannot be had."""
    record = parse_json_object(line)
    return record if isinstance(record, str) else reader.pick(record)


def read_line_blocks(file: DataFile, place: Place) -> Iterator[tuple[bytes, int, tuple[int, int] | None]]:
    """Yields (whole lines, their offset, the frame to read them from) from `place` on, unparsed: workers parse them.

    Raises:
        DataError: the file cannot be read or uncompressed.
    """
    offset = place.offset
    try:
        with open_at(file, place) as stream:
            while block := stream.read(_BLOCK_BYTES):
                block += stream.readline()
                yield block, offset, frame_at(stream, offset)
                offset += len(block)
    except Exception as error:
        explain(error, f"{file.path}, near byte {offset:,}")
        raise
