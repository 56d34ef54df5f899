"""Prepared data of known content for tests of what reads them: shards by their own writer, Megatron's by the byte."""

import struct
from pathlib import Path

import numpy as np

from llama_dyt.data.formats.manifest import Manifest, write_manifest
from llama_dyt.data.formats.shard_writer import ShardWriter, dtype_of


def write_shards(folder: Path, shards, *, vocab_size=1000, rank=0, world_size=1, first=0, **changes) -> Manifest:
    """One machine's part of a prepared folder: `shards` is a list of lists of documents, each a list of tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, documents in enumerate(shards, first):
        writer = ShardWriter(folder, changes.get("split", "train"), f"{number:06d}_000", vocab_size)
        for document in documents:
            writer.write(np.array(document, np.int32), [len(document)])
        written.append(writer.finish())
    values = {
        "written_as": "shards",
        "rank": rank,
        "world_size": world_size,
        "tokenizer": "0123456789abcdef",
        "vocab_size": vocab_size,
        "dtype": dtype_of(vocab_size),
        "bos": 1,
        "eos": 2,
        "validation_fraction": 0.0,
        "max_num_tokens": None,
        "part_bytes": 1 << 26,
        "shard_tokens": 1 << 28,
        "dataset": "corpus",
        "sources": [{"name": "a.jsonl", "bytes": 100}],
        "num_bad_lines": 0,
        "num_empty_documents": 0,
        "shards": written,
    }
    manifest = Manifest(**{**values, **{k: v for k, v in changes.items() if k != "split"}})
    write_manifest(folder, manifest)
    return manifest


def write_megatron(stem, documents, dtype="<u2", code=8):
    """The layout of Megatron-LM's indexed_dataset.py, by the byte."""
    sequences = [sequence for document in documents for sequence in document]
    sizes = np.array([len(sequence) for sequence in sequences], "<i4")
    pointers = np.concatenate(([0], np.cumsum(sizes[:-1], dtype="<i8"))) * np.dtype(dtype).itemsize
    index = np.cumsum([0, *(len(document) for document in documents)])
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sizes), len(index))
    stem.with_suffix(".idx").write_bytes(
        header + sizes.tobytes() + pointers.astype("<i8").tobytes() + index.astype("<i8").tobytes()
    )
    stem.with_suffix(".bin").write_bytes(np.concatenate([np.array(s, dtype) for s in sequences]).tobytes())
    return stem
