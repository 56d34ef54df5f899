"""The tensors of a folder of safetensors, one file or many under an index: names, shapes, and parts of them.

HuggingFace folders and the checkpoints of a run are read alike.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from llama_dyt.core import files
from llama_dyt.core.errors import CheckpointError

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class TensorFiles:
    """Open safetensors of one folder. Opening reads the headers; a tensor is read where it is indexed.

    Args:
        folder: holds `{kind}.safetensors`, or shards and `{kind}.safetensors.index.json`.
        kind: "model" or "optimizer".

    Raises:
        CheckpointError: a file is missing, unreadable or cut short.
    """

    def __init__(self, folder: Path, kind: str = "model") -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._files: dict[str, tuple[Any, Path]] = {}
        try:
            for file in _files(folder, kind):
                self._open(file)
        except BaseException:
            self.close()
            raise

    def _open(self, file: Path) -> None:
        try:
            handle = self._stack.enter_context(safe_open(file, framework="pt"))
            self._files.update((name, (handle, file)) for name in handle.keys())  # noqa: SIM118 (it is no dict)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file}: unreadable or cut short ({file.stat().st_size} bytes: {error}); copy it again, or use an "
                "earlier checkpoint"
            ) from error

    def shapes(self) -> dict[str, tuple[tuple[int, ...], Path]]:
        """Tensor name → (shape, file)."""
        return {name: (tuple(handle.get_slice(name).get_shape()), file) for name, (handle, file) in self._files.items()}

    def dtype(self, name: str) -> torch.dtype:
        """That a tensor is stored in."""
        return self._files[name][0].get_slice(name)[:0].dtype

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> StoredTensor:
        if name not in self._files:
            raise CheckpointError(f"{self._folder} has no tensor {name}; the checkpoint is of another model")
        return StoredTensor(self._files[name][0].get_slice(name))

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


class StoredTensor:
    """A tensor in a file: indexed by slices it gives that part, in fp32 on the host."""

    def __init__(self, stored: Any) -> None:
        self._stored = stored

    def whole(self) -> torch.Tensor:
        """All of it, in the dtype it has in the file: its mapped bytes, not to be written to."""
        return self._stored[...]

    @property
    def dtype(self) -> torch.dtype:
        """The one it has in the file; nothing but its header is read.

        Raises:
            CheckpointError: one that no model here has.
        """
        kind = self._stored.get_dtype()
        if kind not in _DTYPES:
            raise CheckpointError(f"stored as {kind}; give weights that are not quantized ({', '.join(_DTYPES)})")
        return _DTYPES[kind]

    @property
    def num_rows(self) -> int:
        return self._stored.get_shape()[0]

    @property
    def num_columns(self) -> int:
        return self._stored.get_shape()[1]

    def __getitem__(self, index: slice | tuple[slice, ...]) -> torch.Tensor:
        return self._stored[index].float()


def _files(folder: Path, kind: str) -> list[Path]:
    index = folder / f"{kind}.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            found = [files.inside(folder, name) for name in names]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: not an index of safetensors ({error}); copy it again") from error
    else:
        found = [folder / f"{kind}.safetensors"]
    for file in found:
        if not file.is_file():
            older = any(folder.glob("pytorch_model*.bin"))
            remedy = "it holds pytorch_model.bin only: convert.py makes safetensors of it" if older else "copy it again"
            raise CheckpointError(f"{folder}: {file.name} is missing; {remedy}")
    return found
