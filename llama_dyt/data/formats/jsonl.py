"""JSON lines, plain or packed: one object a line. A place is the offset in the uncompressed bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.bad_records import BadRecords, Beginning
from llama_dyt.data.formats.compressed import COMPRESSIONS, frame_at, is_packed, open_at, open_bytes
from llama_dyt.data.formats.format import FileFormat
from llama_dyt.data.formats.lines import is_blank, parse_json_line
from llama_dyt.data.formats.record_files import BadRecord, DataFile, Piece, Place, explain
from llama_dyt.data.formats.sources import ReadOptions

_PLAIN = (".jsonl", ".ndjson")
_BUFFER = 1 << 20
_MOST_RECORDS = 200
_MOST_BYTES = 1 << 22


class JsonLines(FileFormat):
    name = "jsonl"
    suffixes = tuple(suffix + packed for suffix in _PLAIN for packed in COMPRESSIONS)
    shown = tuple(f".jsonl{packed}" for packed in COMPRESSIONS)
    has_lines = lines_by_name = True

    def read(
        self, file: DataFile, place: Place, options: ReadOptions, bad: BadRecord
    ) -> Iterator[tuple[tuple[str, ...], Place]]:
        """As `FileFormat.read`; blank lines are passed over."""
        offset, line_number = place.offset, place.line
        try:
            with open_at(file, place) as stream:
                for line in stream:
                    offset += len(line)
                    line_number += 1
                    if is_blank(line):
                        continue
                    values = parse_json_line(line, options.reader)
                    if isinstance(values, str):
                        bad(file.path, f"line {line_number - 1}", values)
                        continue
                    yield values, Place(offset, line_number, frame_at(stream, offset))
        except Exception as error:
            explain(error, f"{file.path}, line {line_number}")
            raise

    def can_cut(self, name: str) -> bool:
        return not is_packed(name)

    def read_piece(
        self, piece: Piece, place: Place | None, options: ReadOptions, bad: BadRecords
    ) -> Iterator[tuple[tuple[str, ...], Place]]:
        """The lines that begin in a piece of a plain file."""
        try:
            with open(piece.path, "rb", buffering=_BUFFER) as stream:
                if place is not None:
                    offset = place.offset
                    stream.seek(offset)
                elif piece.start:
                    # A line that begins at `start` itself has its predecessor's end before it.
                    stream.seek(piece.start - 1)
                    offset = piece.start - 1 + len(stream.readline())
                else:
                    offset = 0
                while piece.stop is None or offset < piece.stop:
                    line = stream.readline()
                    if not line:
                        return
                    begin, offset = offset, offset + len(line)
                    if is_blank(line):
                        continue
                    values = parse_json_line(line, options.reader)
                    if isinstance(values, str):
                        bad.at(piece.path, begin, values)
                    else:
                        yield values, Place(offset)
        except OSError as error:
            raise DataError(
                f"{piece.path}: cannot be read ({error.strerror}); check the disk and the file's rights",
                about=piece.path,
            ) from error

    def beginning(self, path: Path, options: ReadOptions) -> Beginning:
        lines = list(_first_lines(path))
        usable = sum(not isinstance(parse_json_line(line, options.reader), str) for line in lines)
        records = [record for line in lines if (record := _object(line))]
        array = bool(lines) and lines[0].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
        wrong_form = None
        if array or not records:
            what = "the file is one JSON array" if array else "no line of its beginning is a JSON object"
            wrong_form = f"{what}; write one object a line" + (", such as by `jq -c '.[]'`" if array else "")
        return Beginning(usable, len(lines) - usable, records, wrong_form)


def _first_lines(path: Path) -> Iterator[bytes]:
    with open_bytes(path) as stream:
        left = _MOST_BYTES
        for _ in range(_MOST_RECORDS):
            line = stream.readline(left)
            left -= len(line)
            if not line or left <= 0:
                return
            if not is_blank(line):
                yield line


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


FORMAT = JsonLines()
