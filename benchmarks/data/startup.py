"""Start-up and resume on ten billion tokens: seconds and resident memory of a process that opens prepared data.

The folder is made of sparse files: its tokens are zeros that take no room on the disk, its document indexes are
real. Every measurement is a new process: it imports the reader, opens the folder and reads 4,096 tokens, at the
beginning (start-up) or at the end (resume). The memory it prints is that of the whole process, libraries included.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from common import MEGABYTE, arguments, in_a_process_of_its_own, median_of, write_report

DOCUMENT_TOKENS = 2000
SHARD_TOKENS = 1 << 28
READ_TOKENS = 4096


def make_sparse(folder: Path, num_tokens: int) -> Path:
    """A prepared folder of `num_tokens` tokens, made once."""
    import hashlib
    import io

    import numpy as np

    from llama_dyt.data.formats.manifest import Manifest, Shard, write_manifest

    folder = folder / f"sparse_{num_tokens}"
    if (folder / "manifest_00000_of_00001.json").is_file():
        return folder
    (folder / "train").mkdir(parents=True, exist_ok=True)
    shards = []
    for number, first in enumerate(range(0, num_tokens, SHARD_TOKENS)):
        tokens = min(SHARD_TOKENS, num_tokens - first)
        ends = np.append(np.arange(DOCUMENT_TOKENS, tokens, DOCUMENT_TOKENS), tokens)
        index = io.BytesIO()
        np.lib.format.write_array(index, ends.astype("<i8"), version=(1, 0))
        shard = Shard(
            f"{number:06d}_00000",
            "train",
            tokens,
            len(ends),
            2 * tokens,
            "0" * 64,
            index.getbuffer().nbytes,
            hashlib.sha256(index.getbuffer()).hexdigest(),
        )
        with open(shard.tokens_file(folder), "wb") as file:
            file.truncate(2 * tokens)
        shard.index_file(folder).write_bytes(index.getbuffer())
        shards.append(shard)
    manifest = Manifest(
        written_as="shards",
        rank=0,
        world_size=1,
        tokenizer="0" * 16,
        vocab_size=32000,
        dtype="uint16",
        bos=1,
        eos=2,
        validation_fraction=0.0,
        max_num_tokens=None,
        part_bytes=1 << 30,
        shard_tokens=SHARD_TOKENS,
        dataset="sparse",
        sources=[],
        num_bad_lines=0,
        num_empty_documents=0,
        shards=shards,
    )
    write_manifest(folder, manifest)
    return folder


def measure(side: str, folder: str) -> dict:
    begin = time.perf_counter()
    from llama_dyt.data.formats.shards import open_shards

    imported = time.perf_counter()
    array = open_shards(folder)
    start = 0 if side == "start-up" else array.num_tokens - READ_TOKENS
    document = 0 if side == "start-up" else array.num_documents - 1
    array.tokens(start, start + READ_TOKENS)
    array.document_starts(document, document + 1)
    opened = time.perf_counter()
    with open("/proc/self/status", encoding="utf-8") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    return {
        "import_seconds": imported - begin,
        "open_and_read_seconds": opened - imported,
        "seconds": opened - begin,
        "peak_resident_mb": peak / MEGABYTE,
        "tokens": array.num_tokens,
        "documents": array.num_documents,
        "disk_mb": sum(os.stat(f).st_blocks * 512 for f in Path(folder).rglob("*")) / MEGABYTE,
    }


def main() -> None:
    parser = arguments(__doc__, tokens=(10**10, "size of the folder"), rounds=(5, "measurements of each side"))
    given = parser.parse_args()
    folder = make_sparse(given.work, given.tokens)
    rows = []
    for _ in range(given.rounds):
        for side in ("start-up", "resume"):
            rows.append({"side": side, **in_a_process_of_its_own(__file__, side, folder)})
    summary = {"tokens": rows[0]["tokens"], "documents": rows[0]["documents"]}
    for side in ("start-up", "resume"):
        summary[f"{side}, seconds with imports (goal 1)"] = median_of(rows, side, "seconds")
        summary[f"{side}, seconds to open and read"] = median_of(rows, side, "open_and_read_seconds")
        summary[f"{side}, peak resident MB (goal 200)"] = max(r["peak_resident_mb"] for r in rows if r["side"] == side)
    write_report("startup", given.results, rows, summary)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(*sys.argv[2:])))
    else:
        main()
