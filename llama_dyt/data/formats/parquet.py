"""Parquet: a record a row, its fields in columns. A place is the number of the row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.bad_records import BadRecords, Beginning
from llama_dyt.data.formats.format import FileFormat
from llama_dyt.data.formats.record_files import (
    BadRecord,
    DataFile,
    Piece,
    Place,
    explain,
    name_the_field,
)
from llama_dyt.data.formats.sources import ReadOptions

_ROWS = 256
_MOST_RECORDS = 200


class Parquet(FileFormat):
    name = "parquet"
    suffixes = (".parquet",)

    def read(
        self, file: DataFile, place: Place, options: ReadOptions, bad: BadRecord
    ) -> Iterator[tuple[tuple[str, ...], Place]]:
        """As `FileFormat.read`. Raises DataError also where a column is missing."""
        import pyarrow.parquet

        row = place.offset
        try:
            with open(file.path, "rb") as opened, pyarrow.parquet.ParquetFile(opened) as parquet:
                columns = check_columns(file.path, parquet.schema_arrow, options)
                start = 0
                for group in range(parquet.metadata.num_row_groups):
                    end = start + parquet.metadata.row_group(group).num_rows
                    if end > row:
                        yield from _read_row_group(parquet, group, file.path, columns, start, row, options, bad)
                        row = end
                    start = end
        except Exception as error:
            explain(error, f"{file.path}, row {row}")
            raise

    def can_cut(self, name: str) -> bool:
        return True

    def read_piece(
        self, piece: Piece, place: Place | None, options: ReadOptions, bad: BadRecords
    ) -> Iterator[tuple[tuple[str, ...], Place]]:
        """The rows of those row groups whose first byte is in the piece."""
        import pyarrow
        import pyarrow.parquet

        row, first = 0, place.offset if place is not None else 0
        path = Path(piece.path)
        try:
            with open(path, "rb") as opened, pyarrow.parquet.ParquetFile(opened) as parquet:
                columns = check_columns(path, parquet.schema_arrow, options)
                for group in range(parquet.metadata.num_row_groups):
                    metadata = parquet.metadata.row_group(group)
                    begin, row = row, row + metadata.num_rows
                    offset = _first_byte(metadata)
                    ours = piece.start <= offset and (piece.stop is None or offset < piece.stop)
                    if ours and row > first:
                        yield from _read_row_group(parquet, group, path, columns, begin, first, options, bad)
        except (OSError, pyarrow.ArrowException) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"{piece.path}, row {row}: not a valid parquet file ({reason}); fetch or write it again",
                about=piece.path,
            ) from error

    def beginning(self, path: Path, options: ReadOptions) -> Beginning:
        bad: list[str] = []
        rows = self.read(DataFile(path, path.name, 0), Place(), options, lambda *told: bad.append(told[-1]))
        usable = sum(1 for _ in islice(rows, _MOST_RECORDS))
        return Beginning(usable, len(bad))


def _read_row_group(
    parquet,
    group: int,
    path: Path,
    columns: Sequence[str],
    start: int,
    first: int,
    options: ReadOptions,
    bad: BadRecord,
) -> Iterator[tuple[tuple[str, ...], Place]]:
    """The rows from number `first` on of a group whose first is number `start`."""
    row = start
    for batch in parquet.iter_batches(batch_size=_ROWS, row_groups=[group], columns=list(columns)):
        if row + batch.num_rows <= first:
            row += batch.num_rows
            continue
        lists = [batch.column(batch.schema.get_field_index(column)).to_pylist() for column in columns]
        for held in zip(*lists, strict=True):
            row += 1
            if row <= first:
                continue
            values = options.reader.pick(dict(zip(columns, held, strict=True)))
            if isinstance(values, str):
                bad(path, f"row {row - 1}", values)
                continue
            yield values, Place(row)


def _first_byte(row_group) -> int:
    column = row_group.column(0)
    if column.has_dictionary_page:
        return min(column.dictionary_page_offset, column.data_page_offset)
    return column.data_page_offset


def check_columns(path: Path, schema, options: ReadOptions) -> list[str]:
    """The columns to read of a parquet file with this schema.

    Raises:
        DataError: one that must be there is not, or holds no text.
    """
    import pyarrow

    columns = {column.name: column.type for column in schema}
    texts = [name for name, kind in columns.items() if _holds_text(kind)]
    wanted = options.reader.wanted(list(columns))
    for number, field in enumerate(wanted):
        if field not in columns:
            what = f"has no column '{field}' (it has {', '.join(columns)})"
        elif options.records is None and not _holds_text(columns[field]) and not pyarrow.types.is_null(columns[field]):
            what = f"its column '{field}' is {columns[field]}, not text"
        else:
            continue
        raise DataError(f"{path}: {what}; {name_the_field(wanted, number, texts)}", about=path)
    if not wanted:
        kinds = {name: {str(kind)} for name, kind in columns.items()}
        raise DataError(f"{path}: has no column to learn from; {options.reader.remedy(kinds, texts)}", about=path)
    return wanted


def _holds_text(kind) -> bool:
    import pyarrow

    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_string_view(kind)


FORMAT = Parquet()
