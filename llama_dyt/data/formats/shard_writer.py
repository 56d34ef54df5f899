"""Writing one shard of prepared data: a file of raw tokens and its index of documents, there whole or not at all.

Files are made under other names, synchronised, renamed, and only
then spoken of by whoever keeps the record.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from array import array
from pathlib import Path

import numpy as np

from llama_dyt.core import files
from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.manifest import INDEX_SUFFIX, TOKENS_SUFFIX, Shard

_BUFFER = 1 << 20
ASIDE = ".tmp"


def dtype_of(vocab_size: int) -> str:
    """The name of the smallest type that holds every token of a vocabulary."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


class ShardWriter:
    """Takes documents and leaves a shard.

    Args:
        folder: the prepared folder; the shard's files come to lie in `folder/split`.
        name: of the shard.
        vocab_size: decides the type; a token that is not below it is refused.

    Raises (all methods):
        DataError: the disk is full, or not to be written.
    """

    def __init__(self, folder: Path, split: str, name: str, vocab_size: int):
        self._folder = folder / split
        self._split, self._name = split, name
        self._vocab_size = vocab_size
        self._dtype = np.dtype(dtype_of(vocab_size)).newbyteorder("<")
        self._ends = array("q")
        self._digest = hashlib.sha256()
        self.num_tokens = 0
        self._aside = self._folder / f".{name}{TOKENS_SUFFIX}.{os.getpid()}{ASIDE}"
        with writing(self._aside):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self._aside, "wb", buffering=_BUFFER)  # noqa: SIM115 - closed by finish or discard

    def write(self, tokens: np.ndarray, lengths: list[int]) -> None:
        """Append documents.

        Args:
            tokens: theirs, one after the other, int32.
            lengths: how many tokens each has.
        """
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < self._vocab_size:
            raise DataError(
                f"the tokenizer gave the token {int(tokens.max())}, but its vocabulary has {self._vocab_size} pieces; "
                "give --tokenizer one whose parts belong together"
            )
        raw = tokens.astype(self._dtype).tobytes()
        self._digest.update(raw)
        with writing(self._aside):
            self._file.write(raw)
        for length in lengths:
            self.num_tokens += length
            self._ends.append(self.num_tokens)

    def finish(self) -> Shard:
        """Make both files durable under their names."""
        index = io.BytesIO()
        np.lib.format.write_array(index, np.array(self._ends, dtype="<i8"), version=(1, 0))
        index_file = self._folder / f"{self._name}{INDEX_SUFFIX}"
        with writing(self._aside):
            self._file.flush()
            self._file.close()
            files.put_in_place(self._aside, self._folder / f"{self._name}{TOKENS_SUFFIX}")
        with writing(index_file), files.written_whole(index_file) as index_aside:
            index_aside.write_bytes(index.getbuffer())
        return Shard(
            name=self._name,
            split=self._split,
            tokens=self.num_tokens,
            documents=len(self._ends),
            bytes=self.num_tokens * self._dtype.itemsize,
            sha256=self._digest.hexdigest(),
            index_bytes=index.getbuffer().nbytes,
            index_sha256=hashlib.sha256(index.getbuffer()).hexdigest(),
        )

    def discard(self) -> None:
        """Leave nothing; does nothing after `finish`."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._aside.unlink()


@contextlib.contextmanager
def writing(file: Path):
    """Turns what a disk has to say into a DataError of one line."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{file.parent}: cannot be written ({error.strerror or error}); make room or mend that, and give the same "
            "command again: what is finished is kept"
        ) from error
