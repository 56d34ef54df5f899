"""The DyT authors' layout: rank_N.arrow files, whose documents are read as a stream, and writing such a file.

A document is a record batch there: no place can be found by a token's number, so it is a stream and no token array.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llama_dyt.core import files
from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.format import Format
from llama_dyt.data.formats.recognition import is_arrow_stream, what_is
from llama_dyt.data.formats.record_files import DataFile, stat_file
from llama_dyt.data.formats.shard_writer import ASIDE, writing
from llama_dyt.data.formats.shards import TokenShards
from llama_dyt.data.formats.sources import ReadOptions, Source, TokenDocuments

FIELD = "input_ids"
_NAME = re.compile(r"rank_(\d+)\.arrow")
_DOCUMENTS_AT_ONCE = 1024
_TOKENS_A_MAP = 1 << 24


def is_arrow(path: str | os.PathLike) -> bool:
    """Whether a path is a rank_N.arrow file or a folder with some."""
    path = Path(os.path.expanduser(path))
    if path.is_dir():
        return any(_NAME.fullmatch(entry.name) for entry in os.scandir(path))
    return path.suffix == ".arrow" and path.is_file()


def arrow_file(folder: Path, rank: int, split: str = "train") -> Path:
    """Where a rank's file lies; that of held-out documents in a folder of its own, which the authors do not have."""
    return (folder if split == "train" else folder / split) / f"rank_{rank}.arrow"


class ArrowDocuments(TokenDocuments):
    """The documents of the rank_N.arrow files of a folder, or of one file, in the order of N.

    Attributes:
        fingerprint: of the files' names and sizes.
        bad_lines: always 0; a batch that cannot be read is an error.

    Raises:
        DataError: there is no such file, or one cannot be read.
    """

    def __init__(self, path: str | os.PathLike):
        path = Path(os.path.expanduser(path))
        if path.is_dir():
            found = [path / entry.name for entry in os.scandir(path) if _NAME.fullmatch(entry.name)]
            found.sort(key=lambda file: (int(_NAME.fullmatch(file.name)[1]), file.name))
        else:
            found = [path]
        if not found:
            raise DataError(f"{path}: holds no rank_N.arrow file; check the path", about=path)
        self.files: list[DataFile] = [stat_file(file, file.name) for file in found]
        listing = "\n".join(f"{file.name}\t{file.size}" for file in self.files)
        self.fingerprint = "arrow:" + hashlib.sha256(listing.encode()).hexdigest()[:16]

    def documents(self, position: dict | None = None) -> Iterator[tuple[np.ndarray, dict]]:
        """As `TokenDocuments.documents`; empty documents are passed over."""
        first, batch = 0, 0
        if position is not None:
            names = [file.name for file in self.files]
            if position["file"] not in names:
                raise DataError(f"{position['file']}, where the run stopped reading, is gone; restore it")
            first, batch = names.index(position["file"]), position["batch"]
        for file in self.files[first:]:
            for ids, after in _read(file, batch):
                yield ids, {"file": file.name, "batch": after, "bad_lines": 0}
            batch = 0

    def problems(self) -> list[DataError]:
        """What would stop the run, found quickly: every file's end is looked at, no more."""
        found = []
        for file in self.files:
            try:
                next(_read(file, 0), None)
            except DataError as error:
                found.append(error)
        return found


class Arrow(Format):
    name = "arrow"
    order = 30
    is_tokenized = True

    def matches(self, dataset: str) -> bool:
        return is_arrow(dataset)

    def open(self, dataset: str, options: ReadOptions) -> Source:
        return ArrowDocuments(dataset)


FORMAT = Arrow()


def _read(file: DataFile, first: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields (ids, number of the next document) of one file."""
    import pyarrow

    number = first
    try:
        while True:
            # Pages that were read stay mapped; a new map now and then gives them back.
            with pyarrow.memory_map(str(file.path)) as mapped, pyarrow.ipc.open_file(mapped) as reader:
                column = _column(file, reader.schema)
                left = _TOKENS_A_MAP
                while left > 0 and number < reader.num_record_batches:
                    ids = reader.get_batch(number).column(column)
                    number += 1
                    left -= len(ids)
                    if len(ids):
                        yield _as_tokens(file, number - 1, ids), number
                if number >= reader.num_record_batches:
                    return
    except (OSError, pyarrow.ArrowException) as error:
        if is_arrow_stream(file.path) and (known := what_is(file.path)):
            raise DataError(f"{file.path}: {known}", about=file.path) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{file.path}, document {number}: not a whole Arrow file ({reason}); fetch or make it again",
            about=file.path,
        ) from error


def _as_tokens(file: DataFile, number: int, column) -> np.ndarray:
    if column.null_count == 0:
        ids = column.to_numpy(zero_copy_only=False)
        if ids.min() >= 0 and ids.max() <= np.iinfo(np.int32).max:
            return ids.astype(np.int32)
    raise DataError(f"{file.path}, document {number}: holds what is no token; make the file again", about=file.path)


def _column(file: DataFile, schema) -> int:
    import pyarrow

    column = schema.get_field_index(FIELD)
    if column < 0:
        raise DataError(
            f"{file.path}: has no field '{FIELD}' (it has {', '.join(schema.names)}); name it so", about=file.path
        )
    if not pyarrow.types.is_integer(schema.field(column).type):
        raise DataError(
            f"{file.path}: its field '{FIELD}' is {schema.field(column).type}, not a whole number", about=file.path
        )
    return column


def write_arrow(file: Path, array: TokenShards) -> None:
    """Write the documents of shards, which must have been made without BOS and EOS, as one rank_N.arrow file."""
    import pyarrow

    schema = pyarrow.schema([(FIELD, pyarrow.uint32())])
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        for left in file.parent.glob(f".{file.name}.*{ASIDE}"):  # of one that was killed
            left.unlink(missing_ok=True)
        with (
            files.written_whole(file) as aside,
            pyarrow.OSFile(str(aside), "wb") as sink,
            pyarrow.ipc.new_file(sink, schema) as writer,
        ):
            for ids in _documents_of(array):
                writer.write_batch(pyarrow.record_batch([pyarrow.array(ids.astype(np.uint32))], schema=schema))


def _documents_of(array: TokenShards) -> Iterator[np.ndarray]:
    for first in range(0, array.num_documents, _DOCUMENTS_AT_ONCE):
        starts = array.document_starts(first, min(first + _DOCUMENTS_AT_ONCE, array.num_documents) + 1)
        for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist()):
            yield array.tokens(start, stop)
