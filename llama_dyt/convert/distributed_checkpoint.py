"""torch.distributed.checkpoint's folders (`.metadata` and `*.distcp`), read without a process group, a piece at a time.

Their table is a pickle, which torch's own reader loads as it comes; here it may name the table's own classes alone.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama_dyt.core import files
from llama_dyt.core.errors import CheckpointError

METADATA = ".metadata"
_CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
    "torch.distributed._shard.sharded_tensor.metadata": ("TensorProperties", "MEM_FORMAT_ENCODING"),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size", "float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8", "bool", "device"),
    "collections": ("OrderedDict",),
    "pathlib": ("Path", "PosixPath", "PurePosixPath"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Programs of before torch 2.1 had the table's classes in a module of another name.
        module = module.replace("torch.distributed._shard.checkpoint", "torch.distributed.checkpoint")
        if name not in _CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


@dataclass(frozen=True)
class Piece:
    """A part of a tensor in a file.

    Attributes:
        offsets: where it begins in the whole.
    """

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    path: Path
    begin: int
    num_bytes: int


class CheckpointFolder:
    """The tensors of one checkpoint.

    Args:
        folder: with `.metadata`.

    Raises:
        CheckpointError: the table cannot be read or names code, or a file is missing or shorter than the table says.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / METADATA
        try:
            with open(path, "rb") as file:
                table = _Unpickler(file).load()
            storage = {(index.fqn, tuple(index.offset or ())): info for index, info in table.storage_data.items()}
            tensors = {name: entry for name, entry in table.state_dict_metadata.items() if hasattr(entry, "chunks")}
        except pickle.UnpicklingError as error:
            what = str(error)
            raise CheckpointError(
                f"{path} names {what}, which is none of a checkpoint's own classes: loading it could run code that "
                "came with the file, so it is refused"
            ) from error
        except (OSError, EOFError, AttributeError, TypeError, ValueError, ImportError) as error:
            raise CheckpointError(f"{path}: unreadable or cut short ({error}); copy it again") from error
        self._folder = folder
        self.dtypes: dict[str, torch.dtype] = {name: entry.properties.dtype for name, entry in tensors.items()}
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(entry.size) for name, entry in tensors.items()}
        self._pieces = {name: self._pieces_of(name, entry.chunks, storage) for name, entry in tensors.items()}

    def _pieces_of(self, name: str, chunks: Any, storage: Mapping[Any, Any]) -> list[Piece]:
        pieces = []
        for chunk in chunks:
            offsets = tuple(chunk.offsets)
            info = storage.get((name, offsets)) or storage.get((name, ()))
            if info is None:
                raise CheckpointError(f"{self._folder / METADATA} does not say where {name} is; copy it again")
            try:
                path = files.inside(self._folder, info.relative_path)
            except ValueError as error:
                raise CheckpointError(f"{self._folder / METADATA}: {error}; get it from who made it") from error
            if not path.is_file():
                raise CheckpointError(f"{path} is missing, which holds {name}; copy it again")
            if path.stat().st_size < info.offset + info.length:
                raise CheckpointError(
                    f"{path}: cut short ({path.stat().st_size} bytes; {name} ends at {info.offset + info.length}); "
                    "copy it again"
                )
            pieces.append(Piece(offsets, tuple(chunk.sizes), path, info.offset, info.length))
        if sum(torch.Size(piece.shape).numel() for piece in pieces) != torch.Size(self.shapes[name]).numel():
            raise CheckpointError(f"{self._folder / METADATA} lists less than the whole of {name}; copy it again")
        return pieces

    def read(self, name: str) -> Tensor:
        """A whole tensor."""
        whole = torch.empty(self.shapes[name], dtype=self.dtypes[name])
        for piece in self._pieces[name]:
            with open(piece.path, "rb") as file:
                file.seek(piece.begin)
                content = io.BytesIO(file.read(piece.num_bytes))
            try:
                stored = torch.load(content, map_location="cpu", weights_only=True)
            except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
                raise CheckpointError(f"{piece.path}: {name} cannot be read in it; copy it again") from error
            where = tuple(slice(begin, begin + size) for begin, size in zip(piece.offsets, piece.shape, strict=True))
            whole[where] = stored
        return whole
