"""An adapter merged into the weights beside which it was trained: what comes out is an ordinary model again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from llama_dyt.core import files
from llama_dyt.core.errors import CheckpointError
from llama_dyt.models.adapters.adapter import HIGH, LOW, MAGNITUDE, Adapter, Place
from llama_dyt.models.adapters.peft_files import AdapterFiles, read_adapter
from llama_dyt.models.build import build_config, empty_model
from llama_dyt.models.spec import family_of
from llama_dyt.models.tensor_files import TensorFiles

MAX_SHARD_BYTES = 2 * 1024**3


def merge(base: Path, adapter: Path, output: Path, dtype: torch.dtype | None = None, *, anew: bool = False) -> Path:
    """Write a base with an adapter merged into it as an HF folder, of the base's own kind and with its own files.

    It holds one tensor at a time and what a shard is made of. A tied head that the adapter does not treat as it treats
    the embedding is written by itself, and the config says so.

    Args:
        base: HF folder with config.json and safetensors.
        adapter: folder in peft's format.
        output: the folder to make; it is whole or not there.
        dtype: of the weights written; None: each as the base has it.
        anew: a folder that is there already is removed first.

    Raises:
        CheckpointError: `output` is there already, or one of the others cannot be used; see `read_adapter`.
    """
    if output.exists() and not anew:
        raise CheckpointError(f"{output} is there already; remove it, or give another folder")
    config = build_config(base)
    found = read_adapter(adapter, empty_model(config))
    shutil.rmtree(output, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    with TensorFiles(base) as weights, AdapterFiles(adapter) as stored, files.made_whole(output) as aside:
        aside.mkdir()
        _copy_others(base, aside)
        names = _names(weights, found, config, aside)
        if dtype is not None:
            _change_config(aside, dtype=str(dtype).removeprefix("torch."))
        _write_shards(aside, names, _Merged(weights, stored, found, dtype))
    return output


def merge_into(model: nn.Module, adapter: Path) -> None:
    """Merge an adapter into a causal LM on a CPU, in place.

    Args:
        model: ours, or the plain HF model that one of our families reads.

    Raises:
        CheckpointError: see `read_adapter`.
    """
    found = read_adapter(adapter, model)
    _untie(model, found)
    with AdapterFiles(adapter) as stored, torch.no_grad():
        for name in found.whole:
            model.get_parameter(name).copy_(stored[name][:])
        for name, place in found.places.items():
            weight = model.get_submodule(name).weight
            weight.copy_(merged(weight.float(), _tensors(stored, name, place), place))


def merged(weight: Tensor, parts: dict[str, Tensor], place: Place) -> Tensor:
    """A weight with an adapter in it, fp32, of the weight's shape.

    Args:
        weight: (out, in), or (vocabulary, hidden) of an embedding, fp32.
        parts: the adapter's tensors of the module, by the last part of their names.
    """
    embedding = LOW[1] in parts
    low, high = (parts[LOW[1]], parts[HIGH[1]]) if embedding else (parts[LOW[0]], parts[HIGH[0]])
    whole = (weight.t() if embedding else weight) + place.scaling * (high @ low)
    if place.use_dora:
        whole *= (parts[MAGNITUDE] / torch.linalg.vector_norm(whole.double(), dim=1).float())[:, None]
    return whole.t() if embedding else whole


def _tensors(stored: AdapterFiles, module: str, place: Place) -> dict[str, Tensor]:
    names = [part for part in (*LOW, *HIGH, MAGNITUDE) if f"{module}.{part}" in stored.shapes()]
    return {part: stored[f"{module}.{part}"][:] for part in names}


def _tied_apart(adapter: Adapter, family: Any) -> bool:
    """Whether an embedding and a head of one weight part, since the adapter sits in one of them alone or differs."""
    embedding, head = f"{family.decoder}.{family.embedding}", family.head
    return embedding in adapter.places or head in adapter.places


def _untie(model: nn.Module, adapter: Adapter) -> None:
    family = family_of(model.config)
    embedding, head = model.get_submodule(f"{family.decoder}.{family.embedding}"), model.get_submodule(family.head)
    if embedding.weight is head.weight and _tied_apart(adapter, family):
        head.weight = nn.Parameter(head.weight.detach().clone(), head.weight.requires_grad)
        model.config.tie_word_embeddings = False


def _copy_others(base: Path, folder: Path) -> None:
    """What lies beside the weights: config, modeling files, tokenizer."""
    for file in base.iterdir():
        if file.is_file() and file.suffix not in (".safetensors", ".bin") and not file.name.endswith(".index.json"):
            shutil.copyfile(file, folder / file.name)


def _names(weights: TensorFiles, adapter: Adapter, config: Any, folder: Path) -> dict[str, str]:
    """Name of a tensor to write → the one of the base that it is made of."""
    names = {name: name for name in weights.shapes()}
    family = family_of(config)
    if config.tie_word_embeddings and _tied_apart(adapter, family):
        names[f"{family.head}.weight"] = f"{family.decoder}.{family.embedding}.weight"
        _change_config(folder, tie_word_embeddings=False)
    return names


def _change_config(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    files.write_json(file, {**json.loads(file.read_text(encoding="utf-8")), **fields})


class _Merged:
    """What is written for a tensor of the base."""

    def __init__(self, weights: TensorFiles, stored: AdapterFiles, adapter: Adapter, dtype: torch.dtype | None) -> None:
        self._weights, self._stored, self._adapter, self._dtype = weights, stored, adapter, dtype

    def tensor(self, name: str, source: str) -> Tensor:
        """The tensor `name`, made of the base's `source`."""
        dtype = self._dtype or self._weights.dtype(source)
        if name in self._adapter.whole:
            return self._stored[name][:].to(dtype)
        weight = self._weights[source][:]
        place = self._adapter.places.get(name.removesuffix(".weight"))
        if place is not None and name.endswith(".weight"):
            weight = merged(weight, _tensors(self._stored, name.removesuffix(".weight"), place), place)
        return weight.to(dtype).contiguous()


def _write_shards(folder: Path, names: dict[str, str], source: _Merged) -> None:
    """Write tensors under HuggingFace's names of shards, with an index where there are several."""
    shards: list[list[str]] = []
    tensors: dict[str, Tensor] = {}
    total = held = 0

    def put() -> None:
        shards.append(sorted(tensors))
        save_file(tensors, folder / f"{len(shards)}.part", {"format": "pt"})
        tensors.clear()

    for name, made_of in names.items():
        tensor = source.tensor(name, made_of)
        if tensors and held + tensor.nbytes > MAX_SHARD_BYTES:
            put()
            held = 0
        tensors[name] = tensor
        held, total = held + tensor.nbytes, total + tensor.nbytes
    put()
    where = {}
    for number, held_names in enumerate(shards, start=1):
        single = len(shards) == 1
        file = "model.safetensors" if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"{number}.part").rename(folder / file)
        where.update(dict.fromkeys(held_names, file))
    if len(shards) > 1:
        files.write_json(
            folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where}
        )
