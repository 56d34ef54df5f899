"""torch's own files, read without running anything in them and without holding them: mapped, weights only."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy
import torch

from llama_dyt.core.errors import CheckpointError


def load(path: Path) -> Any:
    """What a file written by torch.save holds; its tensors are mapped, so that what is not looked at is not read.

    Raises:
        CheckpointError: it is not there, is cut short, is no such file, or holds what is neither data nor tensor.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; copy it again")
    try:
        with torch.serialization.safe_globals(_harmless()):
            # What is no zip file is of before torch 1.6: it cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = str(error).replace("\n", " ")
        if "nsupported" not in found and "GLOBAL" not in found:
            raise CheckpointError(_damaged(path, error)) from error
        what = found.partition("GLOBAL ")[2].split(" ")[0] or "an object"
        raise CheckpointError(
            f"{path} holds {what} beside tensors: loading it would run code that came with the file, so it is refused. "
            "Save the tensors alone: torch.save({name: tensor, …})"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(_damaged(path, error)) from error


def tensors_in(path: Path, *keys: str) -> dict[str, torch.Tensor]:
    """The tensors of a file by name, what else stands beside them left out.

    Args:
        keys: where in the file they are: ("model_state",).

    Raises:
        CheckpointError: as `load`, or there is nothing under a key.
    """
    found = load(path)
    for key in keys:
        if not isinstance(found, dict) or key not in found:
            raise CheckpointError(f"{path} has no {key!r}; is it a checkpoint of that format?")
        found = found[key]
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no table of tensors; is it a checkpoint of that format?")
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}


def _damaged(path: Path, error: Exception) -> str:
    if "Cannot allocate memory" in str(error):
        return (
            f"{path}: its {path.stat().st_size} bytes cannot be mapped: the system gives no more memory (ulimit -d, -v)"
        )
    reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
    return f"{path}: unreadable or cut short ({path.stat().st_size} bytes: {reason}); copy it again"


def _harmless() -> list[Any]:
    """Types beside torch's own that training programs save: NumPy's arrays, in random states."""
    reconstruct = numpy.arange(1).__reduce__()[0]
    return [(reconstruct, "numpy.core.multiarray._reconstruct"), reconstruct, numpy.ndarray, numpy.dtype] + [
        type(numpy.dtype(kind)) for kind in ("uint32", "int64", "float64")
    ]
