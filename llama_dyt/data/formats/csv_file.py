"""Comma-separated values with a header, a record a row; quotes as RFC 4180 has them. A place is the record's number."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.compressed import COMPRESSIONS, open_bytes
from llama_dyt.data.formats.format import FileFormat

_LONGEST_VALUE = 1 << 30


class Csv(FileFormat):
    name = "csv"
    suffixes = tuple(f".csv{packed}" for packed in COMPRESSIONS)
    shown = (".csv",)
    only_where_named = suffixes  # in a folder they are as often lists of what is there
    order = 62

    def records(self, path: Path, first: int, settings: Any) -> Iterator[dict[str, str]]:
        """As `FileFormat.records`. Raises DataError also for a row that has more or fewer values than the header."""
        csv.field_size_limit(_LONGEST_VALUE)
        # A byte-order mark, which spreadsheets write, is no part of the first name.
        with open_bytes(path) as packed, io.TextIOWrapper(packed, encoding="utf-8-sig", newline="") as text:
            rows = csv.reader(text, strict=True)
            try:
                header = next(rows, None)
                if header is None:
                    return
                for row in islice(filter(None, rows), first, None):
                    if len(row) != len(header):
                        raise DataError(
                            f"{path}, up to line {rows.line_num}: the row has {len(row)} values, the header "
                            f"{len(header)} ({', '.join(header)}); put values with commas, quotes or line ends in "
                            "double quotes",
                            about=path,
                        )
                    yield dict(zip(header, row, strict=True))
            except csv.Error as error:
                raise DataError(
                    f"{path}, line {rows.line_num}: no valid .csv ({error}); write it again", about=path
                ) from error
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, near line {rows.line_num}: is not UTF-8 ({error.reason}); convert it", about=path
                ) from error


FORMAT = Csv()
