"""Writing a model as a HuggingFace folder, and asking one what it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PretrainedConfig

from llama_dyt.convert.card import write_card
from llama_dyt.convert.target import Job
from llama_dyt.convert.weights import Weights
from llama_dyt.core import files
from llama_dyt.core.errors import CheckpointError
from llama_dyt.data.tokenizing.tokenizer import save_tokenizer, save_tokenizer_files
from llama_dyt.models import save_config
from llama_dyt.models.auto_classes import register_auto_classes
from llama_dyt.models.tensor_writer import write_tensors

_GENERATION = "generation_config.json"
ORIGINAL = "original/tokenizer.model"
"""Meta's own file in folders for HuggingFace, where it is in a form that these do not read."""


def write_folder(job: Job, folder: Path, plain: PretrainedConfig | None) -> dict[str, str]:
    """Write config, weights, tokenizer, generation config and card.

    Args:
        plain: the config of transformers' own class that means the same; None: our classes, whose files go with it.

    Returns:
        name → SHA-256 of the files of tensors.
    """
    _write_config(job, folder, plain)
    sums = _write_weights(job.weights, folder, job.max_shard_bytes)
    if job.tokenizer is not None:
        _write_tokenizer(job, folder)
    _write_generation_config(job, folder)
    write_card(job, folder, patched=plain is None)
    return sums


def _write_tokenizer(job: Job, folder: Path) -> None:
    """The tokenizer, and the file that it was in before HuggingFace: Meta's code reads that alone."""
    files_of = job.tokenizer_files
    if files_of is None or not files_of.is_dir():
        save_tokenizer(job.tokenizer, folder)
        own = files_of if files_of is not None and files_of.suffix == ".model" else None
        # What is no SentencePiece model stands where Meta's folders for HuggingFace have it.
        place = folder / (ORIGINAL if job.opened.load_tokenizer is not None else "tokenizer.model")
    else:
        save_tokenizer_files(files_of, job.tokenizer, folder)
        own, place = files_of / ORIGINAL, folder / ORIGINAL
    if own is not None and own.is_file():
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(own, place)


def _ends(job: Job) -> dict[str, int | None]:
    """The ids of a text's two ends, by the tokenizer's word where there is one."""
    if job.tokenizer is None:
        return {}
    return {"bos_token_id": job.tokenizer.bos_token_id, "eos_token_id": job.tokenizer.eos_token_id}


def _write_config(job: Job, folder: Path, plain: PretrainedConfig | None) -> None:
    ends = {} if _has_generation(job) else _ends(job)
    name = str(job.weights.dtype).removeprefix("torch.")
    if plain is None:
        save_config(job.weights.config, folder)
        path = folder / "config.json"
        fields = json.loads(path.read_text(encoding="utf-8")) | {"dtype": name} | ends
        files.write_text(path, json.dumps(fields, indent=2, sort_keys=True) + "\n")
        return
    for key, value in ends.items():
        setattr(plain, key, value)
    plain.dtype = name
    plain.save_pretrained(folder)


def _has_generation(job: Job) -> bool:
    return job.opened.generation is not None and (job.opened.generation / _GENERATION).is_file()


def _write_generation_config(job: Job, folder: Path) -> None:
    from transformers import GenerationConfig

    if _has_generation(job):
        shutil.copyfile(job.opened.generation / _GENERATION, folder / _GENERATION)
        return
    ends = _ends(job) or {key: getattr(job.weights.config, key, None) for key in ("bos_token_id", "eos_token_id")}
    GenerationConfig(**ends).save_pretrained(folder)


def _write_weights(weights: Weights, folder: Path, max_shard_bytes: int) -> dict[str, str]:
    shards: list[list[str]] = []
    size = 0
    for name, stored in weights.stored.items():
        num_bytes = torch.Size(stored.shape).numel() * stored.dtype.itemsize
        if not shards or size + num_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += num_bytes
    sums, weight_map = {}, {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        layout = {name: (weights.stored[name].shape, weights.stored[name].dtype) for name in names}
        sums[file] = write_tensors(layout, weights.read, folder / file)
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": weights.num_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        files.write_json(folder / "model.safetensors.index.json", index)
    return sums


@torch.no_grad()
def logits_of_folder(folder: Path, input_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """What transformers' Auto classes make of a folder: (1, length) ids to (length, vocabulary) in fp32.

    Args:
        dtype: its weights are rounded to it; computed is in fp32.

    Raises:
        CheckpointError: they cannot load it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from llama_dyt.models.spec import FAMILIES

    for family in FAMILIES:
        register_auto_classes(family)
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{folder}: transformers cannot load it: {reason}") from error
    model = model.float().eval()
    return model(input_ids, use_cache=False).logits[0].float()
