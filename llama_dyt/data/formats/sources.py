"""What opening a dataset gives: records of text, tokenized documents, or one long array of tokens.

Each says of itself what may be done with it; nobody who reads it asks which of them it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.record_files import DataFile, Place, RecordReader, TextFields

if TYPE_CHECKING:
    import numpy as np

SAMPLE = "sample"
"""The name of the corpus that is built on this machine."""
SAMPLE_FOLDER = "data/sample"
"""Where it is built, seen from where the program was started."""


@dataclass(frozen=True)
class ReadOptions:
    """How what a name means is read.

    Attributes:
        fields: of a record, in the order they are asked for.
        task: configuration of a hub dataset (`--task_name`); others have none.
        split: of prepared data.
        skip_bad_lines: count unusable records instead of raising.
        sample_folder: where `sample` is, or gets, built.
        settings: name of a format → its own settings; one that is absent has its defaults.
        records: what is taken of a record; None: the texts of `fields`.
    """

    fields: tuple[str, ...] = ("text",)
    task: str | None = None
    split: str = "train"
    skip_bad_lines: bool = False
    sample_folder: str = SAMPLE_FOLDER
    settings: Mapping[str, Any] = field(default_factory=dict)
    records: RecordReader | None = None

    @property
    def reader(self) -> RecordReader:
        """What takes values of a record."""
        return self.records or TextFields(self.fields)


class Source:
    """What is common to all; a format's own derives from one of the three below.

    Attributes:
        fingerprint: changes when what is read could have; a position belongs to one fingerprint.
        is_local: walking it once beforehand is cheap enough to count steps.
        is_tokenized: it gives token ids; otherwise text, which is tokenized here.
        has_random_access: its tokens can be read at any place, and are counted; otherwise it can only be walked.
        bad_lines: unusable records passed over so far in the present walk.
        can_be_shared: its files can be divided (`TextSource.share`).
        former_fingerprint: of what once stood in its place and no longer can be gone on with; None where nothing did.
    """

    fingerprint: str
    is_local: bool = True
    is_tokenized: bool = False
    has_random_access: bool = False
    bad_lines: int = 0
    can_be_shared: bool = False
    former_fingerprint: str | None = None

    def problems(self) -> list[DataError]:
        """What would stop a run, found quickly, before anything is launched."""
        return []

    def has_document(self) -> bool:
        """Whether there is a document, or record, with anything in it; reads as far as the first."""
        raise NotImplementedError(f"{type(self).__name__}.has_document")

    def in_words(self) -> str | None:
        """What its name was found to mean, for the user to see; None where there is nothing to say."""
        return None

    def warning(self, eos: int) -> str | None:
        """What a run should be told of the data before it starts; None where there is nothing."""
        return None

    def without(self, held_out_fraction: float | None) -> str:
        """The fingerprint of what is left when a share is held out, where that is done while it is read."""
        return self.fingerprint


class TextSource(Source):
    """Records of text in a fixed order.

    Attributes:
        fields: of each record, in the order of its values.
        files: what is read, where that is files; preparing cuts them into parts.
        num_shares: into how many parts it can be divided at most (`share`); what is not read as files may have to ask.
    """

    fields: tuple[str, ...] = ("text",)
    files: Sequence[DataFile] = ()

    @property
    def num_shares(self) -> int:
        return max(len(self.files), 1)

    def sized_files(self) -> Sequence[DataFile]:
        """`files`, the size of each known; asks who has them where it is not.

        Raises:
            DataError: some are not there.
        """
        return self.files

    def iterate(self, position: dict | None = None) -> Iterator[tuple[tuple[str, ...], dict]]:
        """Walks the records once, from the start or from a position.

        Yields:
            (values of `fields`, position): where to go on after this record, JSON-able. It has `bad_lines`, so many so
            far, and, of a source without files, `row`: how many records came before.
        Raises:
            DataError: a record cannot be used, or the position's place is gone.
        """
        raise NotImplementedError(f"{type(self).__name__}.iterate")

    def share(self, number: int, count: int) -> TextSource:
        """Number `number` of `count` parts of its files, none of which is in two; asked where `can_be_shared`.

        Raises:
            DataError: there are not so many files.
        """
        raise NotImplementedError(f"{type(self).__name__}.share")

    def line_blocks(self, position: dict | None = None) -> Iterator[tuple[DataFile, Place, bytes]] | None:
        """The same records as (file, place, whole JSON lines) for others to parse; None where they are no such lines.

        Of the places only the first of each file has its line number.
        """
        return None

    def refuse(self, path: Path, where: str, reason: str) -> None:
        """Raises for a line of `line_blocks` that cannot be used, unless such are to be left out."""

    def has_document(self) -> bool:
        return any(all(values) for values, _ in self.iterate())

    def without(self, held_out_fraction: float | None) -> str:
        return self.fingerprint + ("" if held_out_fraction is None else f", without held out {held_out_fraction!r}")


def too_few_files(dataset: str, num_files: int, count: int) -> DataError:
    """For `TextSource.share`."""
    files = "one file" if num_files == 1 else f"{num_files} files"
    return DataError(f"{dataset}: has {files}, and --stream_shares is {count}; give as many at most", about=dataset)


class TokenDocuments(Source):
    """Tokenized documents in a fixed order, which can only be walked."""

    is_tokenized = True

    def documents(self, position: dict | None = None) -> Iterator[tuple[np.ndarray, dict]]:
        """Walks the documents once, from the start or from a position.

        Yields:
            (ids, int32, without BOS and EOS; position after the document, JSON-able, with `bad_lines`).
        Raises:
            DataError: a file is damaged, or the position's place is gone.
        """
        raise NotImplementedError(f"{type(self).__name__}.documents")

    def has_document(self) -> bool:
        return any(len(ids) for ids, _ in self.documents())


class TokenArray(Source):
    """All tokens of a prepared corpus in their order, nothing of which is held in memory. Threads may share it.

    Attributes:
        num_tokens: BOS and EOS of every document included.
        num_documents: each is a stretch of tokens; one after the other they are the whole array.
        tokenizer: `tokenizer.tokenizer_fingerprint` of the tokenizer that made it; None where the format does not say.
        vocab_size: every token is below it; None where the format does not say.
    """

    is_tokenized = True
    has_random_access = True
    num_tokens: int
    num_documents: int
    tokenizer: str | None = None
    vocab_size: int | None = None

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens number `start` to `stop` - 1, int32, a copy. Raises IndexError where there are not so many."""
        raise NotImplementedError(f"{type(self).__name__}.tokens")

    def document_starts(self, first: int, last: int) -> np.ndarray:
        """Where documents number `first` to `last` - 1 begin, int64; one past the last begins at num_tokens.

        Raises:
            IndexError: there are not so many documents.
        """
        raise NotImplementedError(f"{type(self).__name__}.document_starts")

    def has_document(self) -> bool:
        return self.num_documents > 0
