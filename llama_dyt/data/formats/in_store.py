"""Data in a store (`-d s3://bucket/text/*.jsonl.zst`): a file, a folder, a glob, or a folder of prepared tokens.

Files of text are fetched one after the other while they are read, into the bounded cache of `core.store_copies`, once
for all processes of a machine. Prepared tokens are read at any place, so the whole folder is fetched first.
"""

from __future__ import annotations

from functools import partial
from glob import has_magic

from llama_dyt.core.errors import ConfigurationError, DataError
from llama_dyt.core.store import SCHEME, at, store_of
from llama_dyt.core.store_matches import found_at
from llama_dyt.core.store_path import StorePath
from llama_dyt.data.formats.fetched import told
from llama_dyt.data.formats.file_source import FileSource
from llama_dyt.data.formats.format import Format, format_of, readers
from llama_dyt.data.formats.manifest import is_manifest
from llama_dyt.data.formats.matching import Match, refuse_packed_copies
from llama_dyt.data.formats.record_files import DataFile
from llama_dyt.data.formats.sources import ReadOptions, Source

_OTHERS = ("file", "hf")


class InStore(Format):
    name = "store"
    order = 40
    is_remote = True

    def matches(self, dataset: str) -> bool:
        scheme = SCHEME.match(dataset)
        return scheme is not None and scheme[1].lower() not in _OTHERS

    def open(self, dataset: str, options: ReadOptions) -> Source:
        local = self._prepared(dataset)
        if local is not None:
            return format_of(local).open(local, options)
        return FileSource(dataset, readers(), options, match_in_store(dataset))

    def splits(self, dataset: str) -> tuple[str, ...]:
        local = self._prepared(dataset)
        return super().splits(dataset) if local is None else format_of(local).splits(local)

    def tokenizer_beside(self, dataset: str) -> str | None:
        local = self._prepared(dataset)
        return None if local is None else format_of(local).tokenizer_beside(local)

    def _prepared(self, dataset: str) -> str | None:
        """A copy of a folder of prepared tokens; None where the dataset is none."""
        if has_magic(dataset):
            return None
        place = _place(dataset)
        try:
            names = store_of(place).sizes(place)
            return str(store_of(place).local(place)) if any(map(is_manifest, names)) else None
        except OSError as error:
            raise DataError(told(dataset, error), about=dataset) from None


def match_in_store(dataset: str) -> Match:
    """What an address means; as `matching.match_files`.

    Raises:
        DataError: nothing of that name, or the store does not answer.
    """
    match = Match(readers())
    try:
        found = found_at(dataset, "dataset")
    except ConfigurationError as error:
        raise _as_data_error(dataset, error) from None
    except OSError as error:
        raise DataError(told(dataset, error), about=dataset) from None
    for name, size in found.sizes.items():
        path = name.split("/")
        if any(part.startswith(".") for part in path):
            match.pass_over(name, "hidden")
        elif not match.can_be_read(name):
            match.pass_over(name, f"not {match.readable}")
        elif not found.by_pattern and len(found.sizes) > 1 and match.is_ambiguous(name):
            match.pass_over(name, f"a {name[name.rindex('.') :]}, read only where it is named")
        else:
            file = found.base / name
            match.files.append(DataFile(file, name, size, partial(file.store.copy_of, file)))
    if not match.files:
        seen = f"no {match.readable} file there (found {match.reasons})" if match.passed_over else "nothing is there"
        raise DataError(f"{dataset}: {seen}; check the address", about=dataset)
    refuse_packed_copies(dataset, match.files)
    return match


def _place(dataset: str) -> StorePath:
    try:
        return at(dataset, "dataset")
    except ConfigurationError as error:
        raise _as_data_error(dataset, error) from None


def _as_data_error(dataset: str, error: ConfigurationError) -> DataError:
    (problem,) = error.problems
    return DataError(f"{dataset}: {problem.reason}", about=dataset)


FORMAT = InStore()
