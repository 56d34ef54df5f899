"""Files called .json: one JSON array of records, or JSON lines under that name, told by the first byte.

An array's records are parsed one after the other, so that a file may be larger than memory; a place in it is the number
of the record.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.bad_records import BadRecords, Beginning
from llama_dyt.data.formats.compressed import COMPRESSIONS, open_bytes
from llama_dyt.data.formats.format import FileFormat
from llama_dyt.data.formats.jsonl import JsonLines
from llama_dyt.data.formats.record_files import BadRecord, DataFile, Piece, Place
from llama_dyt.data.formats.sources import ReadOptions

_CHARACTERS = 1 << 18
_SPACE = " \t\r\n"


class JsonFile(JsonLines):
    """JSON lines as those of `jsonl`, and arrays."""

    name = "json"
    suffixes = tuple(f".json{packed}" for packed in COMPRESSIONS)
    shown = (".json",)
    only_where_named = (".json",)
    order = 63

    def has_lines_in(self, path: Path) -> bool:
        return not is_array(path)

    def records(self, path: Path, first: int, settings: Any) -> Iterator[dict[str, Any]]:
        return islice(_array(path), first, None)

    def read(
        self, file: DataFile, place: Place, options: ReadOptions, bad: BadRecord
    ) -> Iterator[tuple[tuple[Any, ...], Place]]:
        kind = FileFormat if is_array(file.path) else JsonLines
        return kind.read(self, file, place, options, bad)

    def read_piece(
        self, piece: Piece, place: Place | None, options: ReadOptions, bad: BadRecords
    ) -> Iterator[tuple[tuple[Any, ...], Place]]:
        """As `JsonLines.read_piece`; the first piece of an array has all of it."""
        path = Path(piece.path)
        if not is_array(path):
            return JsonLines.read_piece(self, piece, place, options, bad)
        if piece.start:
            return iter(())
        return FileFormat.read(self, DataFile(path, piece.name, 0), place or Place(), options, bad)

    def beginning(self, path: Path, options: ReadOptions) -> Beginning:
        kind = FileFormat if is_array(path) else JsonLines
        return kind.beginning(self, path, options)


def is_array(path: Path) -> bool:
    """Whether a file's first character, spaces and a byte-order mark passed over, opens an array."""
    try:
        with open_bytes(path) as stream:
            while block := stream.read(256):
                if begin := block.lstrip(b"\xef\xbb\xbf" + _SPACE.encode()):
                    return begin.startswith(b"[")
    except Exception:  # what is wrong with the file is told where it is read
        return False
    return False


def _array(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of an array. Raises DataError with the number of the one that cannot be parsed."""
    decoder = json.JSONDecoder()
    with open_bytes(path) as packed, io.TextIOWrapper(packed, encoding="utf-8-sig") as stream:
        left, number, size = stream.read(_CHARACTERS).lstrip(_SPACE)[1:], 0, _CHARACTERS
        while True:
            left = left.lstrip(_SPACE)
            if left.startswith("]"):
                return
            try:
                start = 1 if number and left.startswith(",") else 0
                start += len(left) - start - len(left[start:].lstrip(_SPACE))
                if number and not start and left:
                    raise json.JSONDecodeError("',' or ']' expected", left, 0)
                record, end = decoder.raw_decode(left, start)
                # A number at the end of what was read could go on; objects end by themselves.
                if not isinstance(record, dict):
                    raise DataError(
                        f"{path}, record {number}: is a JSON {type(record).__name__}, not an object; mend the file",
                        about=path,
                    )
            except json.JSONDecodeError as error:
                more = stream.read(size)
                size *= 2
                if more:
                    left += more
                    continue
                raise DataError(
                    f"{path}, record {number}: is not valid JSON ({error.msg}); mend the file, or fetch it again",
                    about=path,
                ) from error
            left = left[end:]
            number, size = number + 1, _CHARACTERS
            yield record


FORMAT = JsonFile()
