"""Reading our own prepared data: shards of raw tokens with an index of documents each, as one long array.

`preparing/prepare.py` writes the folder, `manifest.py` says what is in it. Opening looks at names and sizes alone; only
`verify` reads the files.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.format import Format
from llama_dyt.data.formats.manifest import SPLITS, Manifest, Shard, manifest_files, read_manifests
from llama_dyt.data.formats.mapped import MappedFiles, map_file
from llama_dyt.data.formats.sources import ReadOptions, Source, TokenArray

_REMEDY = "fetch the folder anew, or prepare the data again"
_BLOCK = 1 << 22


def is_shards(path: str | os.PathLike) -> bool:
    """Whether a path is a folder that `prepare_data.py` finished at least in part."""
    return bool(manifest_files(Path(os.path.expanduser(path))))


def is_begun(path: str | os.PathLike) -> bool:
    """Whether a path is a folder that `prepare_data.py` began, and has not finished any machine's share of."""
    folder = Path(os.path.expanduser(path))
    return folder.is_dir() and any(folder.glob(".journal_*/settings.json"))


def open_shards(folder: str | os.PathLike, split: str = "train") -> TokenShards:
    """Open one split of a prepared folder.

    Raises:
        DataError: the preparation is not complete or its parts do not fit together, a file is missing or has another
            size than it should, or the split holds no document.
    """
    folder = Path(os.path.expanduser(folder))
    manifests = read_manifests(folder)
    shards = sorted((s for manifest in manifests for s in manifest.split(split)), key=lambda shard: shard.name)
    if not shards:
        why = ""
        if split == "validation" and not manifests[0].validation_fraction:
            why = "; prepare the data with --validation_fraction"
        raise DataError(f"{folder}: the split '{split}' holds no document{why}", about=folder)
    _check_sizes(folder, split, shards)
    return TokenShards(folder, split, manifests[0], shards)


def _check_sizes(folder: Path, split: str, shards: list[Shard]) -> None:
    try:
        with os.scandir(folder / split) as entries:
            sizes = {entry.name: entry.stat().st_size for entry in entries}
    except OSError as error:
        raise DataError(
            f"{folder / split}: cannot be read ({error.strerror}); {_REMEDY}", about=folder / split
        ) from error
    for shard in shards:
        for file, size in ((shard.tokens_file(folder), shard.bytes), (shard.index_file(folder), shard.index_bytes)):
            found = sizes.get(file.name)
            if found is None:
                raise DataError(f"{file}: is missing; {_REMEDY}", about=file)
            if found != size:
                raise DataError(f"{file}: has {found} bytes, but its manifest says {size}; {_REMEDY}", about=file)


class TokenShards(TokenArray):
    """One split of prepared data as one array.

    Attributes:
        bos, eos: ids around every document, None where there is none.
        manifest: of the first machine; what it says of tokenizer, ids and sources holds for all.
        shards: in the order of the tokens.
    """

    def __init__(self, folder: Path, split: str, manifest: Manifest, shards: list[Shard]):
        self.folder, self.split, self.manifest, self.shards = folder, split, manifest, shards
        self.tokenizer: str | None = manifest.tokenizer
        self.vocab_size: int | None = manifest.vocab_size
        self.bos, self.eos = manifest.bos, manifest.eos
        self._token_starts = list(accumulate((shard.tokens for shard in shards), initial=0))
        self._document_starts = list(accumulate((shard.documents for shard in shards), initial=0))
        self.num_tokens, self.num_documents = self._token_starts[-1], self._document_starts[-1]
        listing = "\n".join(f"{shard.name}\t{shard.tokens}\t{shard.sha256}" for shard in shards)
        self.fingerprint = "shards:" + hashlib.sha256(f"{split}\n{listing}".encode()).hexdigest()[:16]
        self._dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self._tokens = MappedFiles(self._open_tokens)
        self._ends = MappedFiles(self._open_index)

    @property
    def num_bytes(self) -> int:
        """Of all files, as `verify` reads them."""
        return sum(shard.bytes + shard.index_bytes for shard in self.shards)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens number `start` to `stop` - 1, int32, a copy.

        Raises:
            IndexError: there are not so many.
        """
        _check_range(start, stop, self.num_tokens, "tokens")
        parts = [part for _, part in self._gather(self._tokens, self._token_starts, start, stop, np.int32)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty(0, np.int32)])

    def document_starts(self, first: int, last: int) -> np.ndarray:
        """Where documents number `first` to `last` - 1 begin, int64; one past the last begins at num_tokens.

        Raises:
            IndexError: there are not so many documents.
        """
        _check_range(first, last, self.num_documents + 1, "documents")
        if first == last:
            return np.empty(0, np.int64)
        # A document begins where the one before it ends, and the first at 0.
        position = max(first - 1, 0)
        found = [] if first else [np.zeros(1, np.int64)]
        for number, ends in self._gather(self._ends, self._document_starts, position, last - 1, np.int64):
            found.append(ends + self._token_starts[number])
        return np.concatenate(found)

    def verify(self, progress: Callable[[int], None] | None = None) -> None:
        """Read every file once and compare it with its checksum.

        Args:
            progress: called with the bytes of each block read.
        Raises:
            DataError: some differ; each is named.
        """
        wrong = []
        for number, shard in enumerate(self.shards):
            tokens_file, index_file = shard.tokens_file(self.folder), shard.index_file(self.folder)
            good = True
            for file, checksum in ((tokens_file, shard.sha256), (index_file, shard.index_sha256)):
                if _sha256(file, progress) != checksum:
                    wrong.append(f"{file}: does not have the checksum in its manifest; {_REMEDY}")
                    good = False
            if good:
                _, ends = self._open_index(number)
                if ends[-1] != shard.tokens or (np.diff(ends, prepend=0) <= 0).any():
                    wrong.append(f"{index_file}: its documents do not fill the shard; {_REMEDY}")
        if wrong:
            raise DataError("\n".join(wrong))

    @staticmethod
    def _gather(files: MappedFiles, starts: list[int], first: int, last: int, dtype) -> Iterator[tuple]:
        """(number of the file, elements from it) of elements `first` to `last` - 1 of files that begin at `starts`."""
        number = bisect_right(starts, first) - 1
        while first < last:
            stop = min(last, starts[number + 1])
            part = files.read(number, first - starts[number], stop - starts[number], dtype)
            if len(part) != stop - first:
                raise DataError(f"a shard became shorter while it was read; {_REMEDY}")
            yield number, part
            first = stop
            number += 1

    def _open_tokens(self, number: int):
        mapped = map_file(self.shards[number].tokens_file(self.folder))
        if len(mapped) != self.shards[number].bytes:
            raise DataError(
                f"{self.shards[number].tokens_file(self.folder)}: its size has changed; {_REMEDY}",
                about=self.shards[number].tokens_file(self.folder),
            )
        return mapped, np.frombuffer(mapped, self._dtype)

    def _open_index(self, number: int):
        file = self.shards[number].index_file(self.folder)
        mapped = map_file(file)
        try:
            version = np.lib.format.read_magic(mapped)
            assert version == (1, 0)
            shape, _, dtype = np.lib.format.read_array_header_1_0(mapped)
            ends = np.frombuffer(mapped, dtype, offset=mapped.tell())
            assert dtype == np.dtype("<i8") and shape == ends.shape == (self.shards[number].documents,)
        except (ValueError, AssertionError) as error:
            raise DataError(f"{file}: not the index of its shard; {_REMEDY}", about=file) from error
        return mapped, ends


def _check_range(start: int, stop: int, size: int, what: str) -> None:
    if not 0 <= start <= stop <= size:
        raise IndexError(f"{what} {start} to {stop} of {size}")


def _sha256(file: Path, progress: Callable[[int], None] | None) -> str:
    digest = hashlib.sha256()
    try:
        with open(file, "rb", buffering=0) as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
                if progress:
                    progress(len(block))
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); {_REMEDY}", about=file) from error
    return digest.hexdigest()


class Shards(Format):
    name = "shards"
    order = 10
    is_tokenized = True

    def matches(self, dataset: str) -> bool:
        return is_shards(dataset) or is_begun(dataset)

    def open(self, dataset: str, options: ReadOptions) -> Source:
        if not is_shards(dataset):
            raise DataError(
                f"{dataset}: prepared in part; give the same prepare_data.py command again to finish it", about=dataset
            )
        return open_shards(dataset, options.split)

    def splits(self, dataset: str) -> tuple[str, ...]:
        if not is_shards(dataset):
            return super().splits(dataset)
        manifests = read_manifests(Path(os.path.expanduser(dataset)))
        return tuple(split for split in SPLITS if any(manifest.split(split) for manifest in manifests))

    def tokenizer_beside(self, dataset: str) -> str | None:
        folder = os.path.join(os.path.expanduser(dataset), "tokenizer")
        return folder if is_shards(dataset) and os.path.isdir(folder) else None


FORMAT = Shards()
