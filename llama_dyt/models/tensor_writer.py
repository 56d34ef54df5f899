"""Writing tensors as safetensors in one pass that also gives the file's SHA-256: no byte is read again for it, and no
more than one tensor need be there at a time.

The library's own `save_file` holds all tensors, and Python's lock for the whole write, gigabytes at times: a run's
other threads, the one among them that tells others it lives, would stand still.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import torch

from llama_dyt.core import files

_CHUNK = 1 << 24
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.bool: "BOOL",
}
"""What a header calls them."""

Layout = Mapping[str, tuple[Sequence[int], torch.dtype]]
"""Name → (shape, dtype) of every tensor in a file."""


def write_tensors(layout: Layout, read: Callable[[str], torch.Tensor], path: Path) -> str:
    """Write a file, byte for byte as `safetensors.torch.save_file(tensors, path, {"format": "pt"})`, to the disk.

    Args:
        read: gives a tensor of `layout` on the host; asked once for each, in the order they have in the file.

    Returns:
        The file's SHA-256.
    """
    with open(path, "wb", buffering=0) as file, _Hashing(file) as hashing:
        hashing.write(header_of(layout))
        for name in file_order(layout):
            shape, dtype = layout[name]
            tensor = read(name)
            found = (tuple(tensor.shape), tensor.dtype)
            assert found == (tuple(shape), dtype), f"{name}: {found} in place of {shape}, {dtype}"
            for chunk in chunks(tensor):
                hashing.write(chunk)
            chunk = tensor = None
            hashing.settle()  # nothing of it is held while the next is read
    files.sync(path)
    return hashing.digest


def chunks(tensor: torch.Tensor) -> Iterator[memoryview]:
    """A tensor's bytes, a few megabytes at a time."""
    data = memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    for begin in range(0, len(data), _CHUNK):
        yield data[begin : begin + _CHUNK]


def file_order(layout: Layout) -> list[str]:
    """The names in the order that their tensors have in a file, one right after the other."""
    # The library's: the widest numbers first, so that all are aligned.
    return sorted(layout, key=lambda name: (-layout[name][1].itemsize, name))


def header_of(layout: Layout) -> memoryview:
    """What a file begins with, before the tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in file_order(layout):
        shape, dtype = layout[name]
        begin, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    return memoryview(len(head).to_bytes(8, "little") + head)


class _Hashing:
    """Writes, and hashes beside that in another thread: both let go of Python's lock.

    Attributes:
        digest: SHA-256 of all that was written, once the context is left.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._pool = ThreadPoolExecutor(1)
        self._last: Future | None = None
        self.digest = ""

    def write(self, chunk: memoryview) -> None:
        self.settle()  # one chunk behind at most
        self._last = self._pool.submit(self._sha256.update, chunk)
        while chunk:
            chunk = chunk[self._file.write(chunk) :]

    def settle(self) -> None:
        """Wait until all that was written is hashed; nothing of it is held from then on."""
        if self._last is not None:
            self._last.result()
            self._last = None

    def __enter__(self) -> _Hashing:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown()
        self.digest = self._sha256.hexdigest()
