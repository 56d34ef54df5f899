"""Writing a table of tensors as torch.save does, one tensor at a time: torch's own holds all of them.

The file is a zip archive, stored without compression: `data.pkl` is the table, in which each tensor refers to a number,
and `data/NUMBER` are its bytes, aligned so that they can be mapped.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama_dyt.core import files
from llama_dyt.core.marker import sha256_of
from llama_dyt.models.tensor_writer import Layout, chunks

_ROOT = "consolidated"
_ALIGNMENT = 64
_ZIP64_FIELD = 20
"""Bytes that `zipfile` adds to an entry's head where it may have more than 4 GiB."""
_VERSION = "3\n"  # of the archive, torch.serialization's
_STORAGES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
}


def write_pth(layout: Layout, read: Callable[[str], Tensor], path: Path) -> str:
    """Write a file that `torch.load(path, weights_only=True, mmap=True)` reads as name → tensor.

    Args:
        read: gives a tensor of `layout`; asked once for each, in its order.

    Returns:
        The file's SHA-256: it is read again for it, as the archive's table is written last of all.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _add(archive, "data.pkl", [_table(layout)])
        _add(archive, "byteorder", [sys.byteorder.encode()])
        for number, (name, (shape, dtype)) in enumerate(layout.items()):
            tensor = read(name)
            found = (tuple(tensor.shape), tensor.dtype)
            assert found == (tuple(shape), dtype), f"{name}: {found} in place of {shape}, {dtype}"
            _add(archive, f"data/{number}", chunks(tensor))
            del tensor
        _add(archive, "version", [_VERSION.encode()])
    files.sync(path)
    return sha256_of(path)


def _add(archive: zipfile.ZipFile, name: str, parts: Any) -> None:
    entry = zipfile.ZipInfo(f"{_ROOT}/{name}")  # of 1980: the same tensors give the same file
    head = archive.fp.tell() + zipfile.sizeFileHeader + len(entry.filename.encode()) + _ZIP64_FIELD + 4
    padding = -head % _ALIGNMENT
    entry.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    with archive.open(entry, "w", force_zip64=True) as file:
        for part in parts:
            file.write(part)


class _Stored:
    """Stands for a tensor in the table."""

    def __init__(self, number: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.number, self.shape, self.dtype = number, shape, dtype


class _Storage:
    """Stands for a tensor's bytes."""

    def __init__(self, number: int, count: int, dtype: torch.dtype) -> None:
        self.number, self.count, self.dtype = number, count, dtype


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if type(value) is not _Stored:
            return NotImplemented
        strides = [math.prod(value.shape[dim + 1 :]) for dim in range(len(value.shape))]
        storage = _Storage(value.number, math.prod(value.shape), value.dtype)
        arguments = (storage, 0, value.shape, tuple(strides), False, collections.OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments

    def persistent_id(self, value: Any) -> Any:
        if type(value) is not _Storage:
            return None
        return ("storage", _STORAGES[value.dtype], str(value.number), "cpu", value.count)


def _table(layout: Layout) -> bytes:
    table = {name: _Stored(number, tuple(shape), dtype) for number, (name, (shape, dtype)) in enumerate(layout.items())}
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(table)
    return buffer.getvalue()
