"""Reading Megatron-LM's and GPT-NeoX's prepared data (`.bin` and `.idx`, the indexed format "MMIDIDX") as one array.

The format is theirs: sequences of any length, documents made of sequences, and no word about the
tokenizer or about which tokens end a document.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

import numpy as np

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.format import Format
from llama_dyt.data.formats.mapped import MappedFiles, map_file
from llama_dyt.data.formats.sources import ReadOptions, Source, TokenArray

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")  # magic, version, code of the type, sequences, length of the document index
_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # 6 and 7 are floating point
_LOOK = 1000
_BLOCK = 1 << 20
_REMEDY = "fetch both files anew, or make them again"


def find_megatron(path: str | os.PathLike) -> Path | None:
    """The path without suffix of the pair of files that `path` names: either file, their common beginning, or a folder
    with one pair. None where there is no such pair.

    Raises:
        DataError: a folder with several.
    """
    path = Path(os.path.expanduser(path))
    found = _index_files(path)
    if len(found) > 1:
        raise DataError(f"{path}: holds {len(found)} .idx files; name one of them, such as {found[0]}", about=path)
    return found[0].with_suffix("") if found else None


def _index_files(path: Path) -> list[Path]:
    """Those that a path means."""
    if path.is_dir():
        return sorted(file for file in path.glob("*.idx") if _begins_rightly(file))
    stem = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    index = stem.with_name(f"{stem.name}.idx")
    return [index] if _begins_rightly(index) else []


def _begins_rightly(file: Path) -> bool:
    try:
        with open(file, "rb") as stream:
            return stream.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


class MegatronTokens(TokenArray):
    """A pair of files as one array.

    Args:
        stem: path of the files without `.bin` and `.idx`.

    Raises:
        DataError: a file is missing, cut off, of another version or does not hold whole numbers.
    """

    def __init__(self, stem: str | os.PathLike):
        stem = Path(stem)
        self.index_file = stem.with_name(f"{stem.name}.idx")
        self.tokens_file = stem.with_name(f"{stem.name}.bin")
        index = map_file(self.index_file)
        if len(index) < _HEADER.size:
            raise DataError(f"{self.index_file}: is cut off ({len(index)} bytes); {_REMEDY}", about=self.index_file)
        magic, version, code, sequences, documents = _HEADER.unpack_from(index)
        if magic != _MAGIC or version != 1:
            raise DataError(
                f"{self.index_file}: version {version} of the format, but only version 1 can be read",
                about=self.index_file,
            )
        if code not in _TYPES:
            raise DataError(
                f"{self.index_file}: holds numbers of type {code}, which are no tokens", about=self.index_file
            )
        self._dtype = np.dtype(_TYPES[code])
        sizes_at = _HEADER.size
        self._pointers_at = sizes_at + 4 * sequences
        self._documents_at = self._pointers_at + 8 * sequences
        if len(index) < self._documents_at + 8 * documents or not sequences or documents < 2:
            raise DataError(
                f"{self.index_file}: {len(index)} bytes for {sequences} sequences and {documents - 1} documents; "
                f"it is cut off or empty; {_REMEDY}",
                about=self.index_file,
            )
        sizes = np.frombuffer(index, "<i4", sequences, sizes_at)
        total = sum(int(sizes[i : i + _BLOCK].sum(dtype=np.int64)) for i in range(0, sequences, _BLOCK))
        self._index = index
        self._pointers = np.frombuffer(index, "<i8", sequences, self._pointers_at)
        self._documents = np.frombuffer(index, "<i8", documents, self._documents_at)
        self.num_tokens, self.num_documents = total, documents - 1
        self._check(sizes)
        self._files = MappedFiles(self._open)
        self.fingerprint = self._fingerprint()

    def _check(self, sizes: np.ndarray) -> None:
        try:
            found = self.tokens_file.stat().st_size
        except OSError as error:
            raise DataError(
                f"{self.tokens_file}: cannot be read ({error.strerror}); {_REMEDY}", about=self.tokens_file
            ) from error
        expected = self.num_tokens * self._dtype.itemsize
        if found != expected or not found:
            raise DataError(
                f"{self.tokens_file}: has {found} bytes, but its index tells of {self.num_tokens} tokens, which are "
                f"{expected} bytes; {_REMEDY}",
                about=self.tokens_file,
            )
        last = int(self._pointers[-1]) + int(sizes[-1]) * self._dtype.itemsize
        if self._pointers[0] != 0 or last != expected:
            raise DataError(
                f"{self.index_file}: its sequences do not follow each other in the file; {_REMEDY}",
                about=self.index_file,
            )
        if self._documents[0] != 0 or self._documents[-1] != len(sizes):
            raise DataError(
                f"{self.index_file}: its documents do not cover its sequences; {_REMEDY}", about=self.index_file
            )

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(f"{len(self._index)} {self.num_tokens}".encode())
        digest.update(self._index[:_BLOCK])
        digest.update(self._index[-_BLOCK:])
        for start in (0, max(0, self.num_tokens - _LOOK)):
            digest.update(self.tokens(start, min(start + _LOOK, self.num_tokens)).tobytes())
        return "megatron:" + digest.hexdigest()[:16]

    def _open(self, number: int):
        mapped = map_file(self.tokens_file)
        return mapped, np.frombuffer(mapped, self._dtype)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens number `start` to `stop` - 1, int32, a copy.

        Raises:
            IndexError: there are not so many.
            DataError: the file became shorter, or holds what is no token.
        """
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start} to {stop} of {self.num_tokens}")
        raw = self._files.read(0, start, stop, np.int64 if self._dtype.itemsize == 8 else np.int32)
        if len(raw) != stop - start:
            raise DataError(f"{self.tokens_file}: became shorter while it was read; {_REMEDY}", about=self.tokens_file)
        if self._dtype.kind == "i" and len(raw) and (raw.min() < 0 or raw.max() > np.iinfo(np.int32).max):
            raise DataError(
                f"{self.tokens_file}: holds what is no token between {start} and {stop}; {_REMEDY}",
                about=self.tokens_file,
            )
        return raw.astype(np.int32, copy=False)

    def document_starts(self, first: int, last: int) -> np.ndarray:
        """Where documents number `first` to `last` - 1 begin, int64; one past the last begins at num_tokens.

        Raises:
            IndexError: there are not so many documents.
        """
        if not 0 <= first <= last <= self.num_documents + 1:
            raise IndexError(f"documents {first} to {last} of {self.num_documents}")
        sequences = self._documents[first:last]
        starts = np.full(len(sequences), self.num_tokens, np.int64)
        inside = sequences < len(self._pointers)
        starts[inside] = self._pointers[sequences[inside]] // self._dtype.itemsize
        return starts

    def warning(self, eos: int) -> str | None:
        """Where documents do not end with EOS; the first thousand are looked at.

        Preparing with Megatron without `--append-eod` leaves it out; then nothing tells a model where one text ends.
        """
        count = min(_LOOK, self.num_documents)
        starts = self.document_starts(0, count + 1)
        ends = starts[1:][np.diff(starts) > 0] - 1
        without = sum(int(self.tokens(end, end + 1)[0]) != eos for end in ends.tolist())
        if not without:
            return None
        return (
            f"{self.tokens_file}: {without} of its first {count} documents do not end with EOS ({eos}); documents run "
            "into each other there"
        )


class Megatron(Format):
    name = "megatron"
    order = 20
    is_tokenized = True

    def matches(self, dataset: str) -> bool:
        return bool(_index_files(Path(os.path.expanduser(dataset))))

    def open(self, dataset: str, options: ReadOptions) -> Source:
        if options.split != "train":
            raise DataError(
                f"{dataset}: Megatron's files have no split '{options.split}'; name held-out files in place of it",
                about=dataset,
            )
        return MegatronTokens(find_megatron(dataset))


FORMAT = Megatron()
