"""Where text comes from: what `-d` may name, and a stream of records with a position after each.

Its own file because it is the data layer's front: everything behind it (packing, loaders) sees only `iterate`.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

from llama_dyt.data.files import (
    COMPRESSIONS,
    DataFile,
    Place,
    is_data_file,
    is_json_lines,
    read_line_blocks,
    read_records,
    stat_file,
)
from llama_dyt.data.hub import HubSource
from llama_dyt.errors import DataError

SAMPLE = "sample"
_FORMATS = ".jsonl, .jsonl.gz, .jsonl.zst or .parquet"
# A folder's plain .json files are as often a tokenizer's or a config's, so those are read only when named.
_FOLDER_EXCLUDES = ".json"


class Source(Protocol):
    """A stream of records in a fixed order.

    Attributes:
        is_local: whether walking it once beforehand is cheap enough to count steps.
        fingerprint: changes when the records could have; a position belongs to one fingerprint.
        bad_lines: unusable records passed over so far in the present walk (with `skip_bad_lines`).
    """

    is_local: bool
    fingerprint: str
    bad_lines: int

    def iterate(self, position: dict | None = None) -> Iterator[tuple[tuple[str, ...], dict]]: ...

    def problems(self) -> list[str]: ...


def place_of(file: DataFile, place: Place, bad_lines: int) -> dict:
    """The JSON-able position of a place in a file."""
    frame = {"frame": list(place.frame)} if place.frame else {}
    return {"file": file.name, "offset": place.offset, "line": place.line, "bad_lines": bad_lines, **frame}


class FileSource:
    """Records of local files, one file after the other in sorted order.

    Args:
        dataset: as the user named it, for messages.
        files: what to read, sorted.
        fields: the fields of each record to yield; all must be strings.
        skip_bad_lines: count unusable records instead of raising.
    """

    is_local = True

    def __init__(self, dataset: str, files: Sequence[DataFile], fields=("text",), skip_bad_lines: bool = False):
        self.dataset = dataset
        self.files = list(files)
        self.fields = tuple(fields)
        self.skip_bad_lines = skip_bad_lines
        self.bad_lines = 0
        listing = "\n".join(f"{file.name}\t{file.size}" for file in self.files)
        self.fingerprint = "files:" + hashlib.sha256(f"{listing}\n{self.fields}".encode()).hexdigest()[:16]

    def iterate(self, position: dict | None = None) -> Iterator[tuple[tuple[str, ...], dict]]:
        """Walks the records once, from the start or from a position.

        Yields:
            (values of `fields`, position): the position, JSON-able, is where to go on after this record.
        Raises:
            DataError: a file or record cannot be used (file and line named), or the position's file is gone.
        """
        files, place, self.bad_lines = self._from(position)
        for file in files:
            for values, after in read_records(file, self.fields, place, self._bad):
                yield values, place_of(file, after, self.bad_lines)
            place = Place()

    def line_blocks(self, position: dict | None = None) -> Iterator[tuple[DataFile, Place, bytes]] | None:
        """The same records as (file, place, whole lines) to be parsed by whoever asks; None where files are parquet.

        Of the places only the first of each file has its line number.
        """
        if not all(is_json_lines(file.name) for file in self.files):
            return None
        return self._line_blocks(position)

    def _line_blocks(self, position: dict | None) -> Iterator[tuple[DataFile, Place, bytes]]:
        files, place, _ = self._from(position)
        for file in files:
            line = place.line
            for block, offset, frame in read_line_blocks(file, place):
                yield file, Place(offset, line, frame), block
                line = 0
            place = Place()

    def _from(self, position: dict | None) -> tuple[list[DataFile], Place, int]:
        """(files still to read, place in the first of them, bad lines so far) at a position."""
        if position is None:
            return self.files, Place(), 0
        names = [file.name for file in self.files]
        if position["file"] not in names:
            raise DataError(f"{self.dataset}: {position['file']}, where the run stopped reading, is gone; restore it")
        frame = position.get("frame")
        place = Place(position["offset"], position["line"], tuple(frame) if frame else None)
        return self.files[names.index(position["file"]) :], place, position["bad_lines"]

    def _bad(self, reason: str) -> None:
        self.refuse(reason)
        self.bad_lines += 1

    def refuse(self, reason: str) -> None:
        """Raises for a line that cannot be used, unless such lines are to be left out."""
        if not self.skip_bad_lines:
            raise DataError(f"{reason}; correct it, or pass --skip_bad_lines to leave such lines out")

    def problems(self) -> list[str]:
        """What would stop the run, found quickly: the first file that holds anything is opened, no more."""
        if not any(file.size for file in self.files):
            return [f"{self.dataset}: {_plural(len(self.files), 'file')}, all empty; give a dataset with text in it"]
        bad_lines = self.bad_lines
        try:
            first_record = next(islice(self.iterate(), 1), None)
        except DataError as error:
            return [str(error)]
        finally:
            self.bad_lines = bad_lines
        if first_record is None:
            return [f"{self.dataset}: holds no usable record; each must have {' and '.join(self.fields)}"]
        return []


def open_source(
    dataset: str,
    fields: Sequence[str] = ("text",),
    *,
    task: str | None = None,
    skip_bad_lines: bool = False,
    sample_folder: str | os.PathLike = "data/sample",
) -> Source:
    """Opens what `-d` names: `sample`, a folder, a file, a glob, or a dataset of the hub.

    Args:
        fields: the fields of each record to yield.
        task: configuration of a hub dataset (`--task_name`); local files have none and ignore it.
        sample_folder: where `sample` is (or gets) built.
    Raises:
        DataError: nothing of that name, no data file in it, or a file that may not be read.
    """
    dataset = str(dataset)
    if dataset == SAMPLE:
        from llama_dyt.data.sample import build_sample_corpus

        dataset = build_sample_corpus(sample_folder).train_glob
    files = find_files(dataset)
    if files is None:
        return HubSource(dataset, fields, task, skip_bad_lines)
    return FileSource(dataset, files, fields, skip_bad_lines)


def find_files(dataset: str) -> list[DataFile] | None:
    """The sorted data files that a local dataset consists of, or None when the name can only be the hub's.

    Raises:
        DataError: a local path or glob that is missing, holds no data file, or holds the same file twice.
    """
    path = Path(os.path.expanduser(dataset))
    if path.is_dir():
        found = sorted(
            (file for file in path.rglob("*") if _belongs(file, path)),
            key=lambda file: file.relative_to(path).as_posix(),
        )
        if not found:
            raise DataError(f"{dataset}: this folder holds no {_FORMATS} file; name a folder, file or glob with some")
        return _checked(dataset, [stat_file(file, file.relative_to(path).as_posix()) for file in found])
    if path.exists():
        if not is_data_file(path.name):
            raise DataError(f"{dataset}: not a format that can be read; give {_FORMATS}")
        return _checked(dataset, [stat_file(path, path.name)])
    if glob.has_magic(dataset):
        paths = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        found = [match for match in paths if match.is_file() and is_data_file(match.name)]
        if not found:
            raise DataError(f"{dataset}: no {_FORMATS} file matches; check the pattern and quote it from the shell")
        root = os.path.commonpath([match.parent for match in found])
        return _checked(dataset, [stat_file(match, match.relative_to(root).as_posix()) for match in found])
    if _looks_local(dataset):
        raise DataError(f"{dataset}: no such file or folder; check the path, or try `-d sample`")
    return None


def _belongs(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return is_data_file(file.name) and not hidden and file.suffix != _FOLDER_EXCLUDES and file.is_file()


def _checked(dataset: str, files: list[DataFile]) -> list[DataFile]:
    """Refuses the same data twice: x.jsonl beside x.jsonl.gz is a file and its packed copy."""
    seen: dict[str, str] = {}
    for file in files:
        plain = file.name
        for packed in COMPRESSIONS[1:]:
            plain = plain.removesuffix(packed)
        if plain in seen:
            raise DataError(f"{dataset}: holds {seen[plain]} and {file.name}, the same data twice; remove one of them")
        seen[plain] = file.name
    return files


def _looks_local(dataset: str) -> bool:
    return dataset.startswith(("/", "./", "../", "~")) or dataset.count("/") > 1 or is_data_file(dataset)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
