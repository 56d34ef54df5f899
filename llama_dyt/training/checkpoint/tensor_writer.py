"""Writing tensors as safetensors in one pass that also gives the file's SHA-256: no byte is read again for it.

The library's own `save_file` holds Python's lock for the whole write, gigabytes at times: a run's other threads, the
one among them that tells others it lives, would stand still.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from llama_dyt.core import files

_CHUNK = 1 << 24


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> str:
    """Write a file, byte for byte as `safetensors.torch.save_file(tensors, path, {"format": "pt"})`, to the disk.

    Args:
        tensors: fp32, on the host.

    Returns:
        The file's SHA-256.
    """
    digest = hashlib.sha256()
    # Hashing runs beside writing: both let go of Python's lock.
    with ThreadPoolExecutor(1) as pool, open(path, "wb", buffering=0) as file:
        hashed = []
        for chunk in _chunks(tensors):
            hashed.append(pool.submit(digest.update, chunk))
            while chunk:
                chunk = chunk[file.write(chunk) :]
        for done in hashed:
            done.result()
    files.sync(path)
    return digest.hexdigest()


def _chunks(tensors: Mapping[str, torch.Tensor]) -> Iterator[memoryview]:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        assert tensor.dtype == torch.float32 and tensor.device.type == "cpu", f"{name}: {tensor.dtype} {tensor.device}"
        begin, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    yield memoryview(len(head).to_bytes(8, "little") + head)
    for name in sorted(tensors):
        data = memoryview(tensors[name].contiguous().view(-1).numpy()).cast("B")
        for begin in range(0, len(data), _CHUNK):
            yield data[begin : begin + _CHUNK]
