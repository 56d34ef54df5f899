"""Writers of small corpora in every format, for the tests of the data layer."""

import gzip
import json
from pathlib import Path


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
