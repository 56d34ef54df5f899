"""The tensors of a HuggingFace folder, safetensors or torch's older files, in the dtype they have there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from llama_dyt.convert.pickles import tensors_in
from llama_dyt.convert.weights import Stored, Weights
from llama_dyt.core import files
from llama_dyt.core.errors import CheckpointError
from llama_dyt.models.joined_tensors import ModelFiles
from llama_dyt.models.model_spec import FilePart
from llama_dyt.models.spec import family_of

_NEWER = "model.safetensors"
_OLDER = "pytorch_model.bin"


def is_hf_folder(path: Path) -> bool:
    """Whether a folder has a config and weights."""
    names = {file.name for file in path.iterdir()} if path.is_dir() else set()
    return "config.json" in names and any(name.endswith((".safetensors", ".bin", ".index.json")) for name in names)


@contextmanager
def open_weights(folder: Path, config: Any) -> Iterator[Weights]:
    """The weights in a folder.

    Raises:
        CheckpointError: a file is missing, unreadable, cut short, or holds code.
    """
    newer, older = (
        any((folder / f"{name}{index}").exists() for index in ("", ".index.json")) for name in (_NEWER, _OLDER)
    )
    if older and not newer:
        yield _older(folder, config)
        return
    with ModelFiles(folder, family_of(config)) as held:
        stored = {}
        for name, (shape, file) in held.shapes().items():
            try:
                stored[name] = Stored(shape, held[name].dtype, f"{file}: {name}")
            except CheckpointError as error:
                raise CheckpointError(f"{file}: {name} is {error}") from error
        # A copy: what the file gives is its mapped bytes, which nobody may write to.
        yield Weights(config, stored, lambda name: held[name].whole().clone())


def as_on_the_hub(weights: Weights) -> Weights:
    """The same under the names that transformers' own class of the family has in the hub's files, where some tensors
    lie in parts. The whole of one is read when its first part is, and kept until another is."""
    family = family_of(weights.config)
    stored: dict[str, Stored] = {}
    parts: dict[str, FilePart] = {}
    for name, own in weights.stored.items():
        for part in family.parts_for_files(name, own.shape):
            parts[part.name] = part
            shape = own.shape if part.index is None else own.shape[1:]
            stored[part.name] = replace(own, shape=shape if part.half is None else (shape[0] // 2, *shape[1:]))
        if not family.parts_for_files(name, own.shape):
            stored[name] = own
    kept: dict[str, Tensor] = {}

    def read(name: str) -> Tensor:
        part = parts.get(name)
        if part is None:
            return weights.read(name)
        if part.of not in kept:
            kept.clear()
            kept[part.of] = weights.read(part.of)
        own = kept[part.of] if part.index is None else kept[part.of][part.index]
        return (own if part.half is None else own.chunk(2)[part.half]).clone()

    return replace(weights, stored=stored, read=read)


def _older(folder: Path, config: Any) -> Weights:
    index = folder / f"{_OLDER}.index.json"
    files_of_it = [folder / _OLDER]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            files_of_it = [files.inside(folder, name) for name in names]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: not an index of tensors ({error}); copy it again") from error
    found: dict[str, tuple[Tensor, Path]] = {}
    for file in files_of_it:
        found.update((key, (tensor, file)) for key, tensor in tensors_in(file).items())
    stored = {
        name: Stored(tuple(tensor.shape), tensor.dtype, f"{file}: {name}") for name, (tensor, file) in found.items()
    }
    return Weights(config, stored, lambda name: found[name][0].clone())
