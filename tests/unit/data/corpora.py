"""Writers of small corpora in every format, for the tests of the data layer."""

import gzip
import json
import zlib
from pathlib import Path

import numpy as np

from llama_dyt.data.formats.sources import TokenArray


def write_jsonl(path: Path, texts, **meta) -> Path:
    """Writes documents in RedPajama's form, packed as the suffix says."""
    lines = "".join(json.dumps({"text": text, "meta": meta}) + "\n" for text in texts).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        lines = gzip.compress(lines)
    elif path.suffix == ".zst":
        import zstandard

        lines = zstandard.compress(lines)
    path.write_bytes(lines)
    return path


def write_parquet(path: Path, texts, row_group_size=3, column="text") -> Path:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({column: list(texts), "meta": [str(i) for i in range(len(texts))]})
    pyarrow.parquet.write_table(table, path, row_group_size=row_group_size)
    return path


class Tokens(TokenArray):
    """A TokenArray in memory, of documents given as lists of tokens."""

    def __init__(self, documents, tokenizer=None, vocab_size=None):
        self._starts = np.cumsum([0, *map(len, documents)])
        self._tokens = np.array([token for document in documents for token in document], np.int32)
        self.num_tokens, self.num_documents = len(self._tokens), len(documents)
        self.fingerprint = f"tokens:{zlib.crc32(self._tokens.tobytes())}"
        self.tokenizer, self.vocab_size = tokenizer, vocab_size

    def tokens(self, start, stop):
        assert 0 <= start <= stop <= self.num_tokens
        return self._tokens[start:stop].copy()

    def document_starts(self, first, last):
        assert 0 <= first <= last <= self.num_documents
        return self._starts[first:last].astype(np.int64)
