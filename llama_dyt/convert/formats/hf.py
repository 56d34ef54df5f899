"""A HuggingFace folder: of transformers' own classes where nothing was patched, else with our modeling files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from llama_dyt.convert.source import Opened
    from llama_dyt.convert.target import Job
    from llama_dyt.convert.weights import Weights


class HuggingFace:
    name, in_words, order = "hf", "a HuggingFace folder", 2
    files = "config.json and safetensors or pytorch_model.bin"
    takes_config = False
    dtype, divided = None, False
    as_on_the_hub = True
    """Whether tensors that the hub's files have in parts are written so."""

    def matches(self, path: Path) -> bool:
        from llama_dyt.convert.hf_files import is_hf_folder

        return is_hf_folder(path)

    @contextmanager
    def open(self, path: Path, config: str | None) -> Iterator[Opened]:
        from llama_dyt.convert.hf_files import open_weights
        from llama_dyt.convert.hf_model import logits_of_folder
        from llama_dyt.convert.source import Opened
        from llama_dyt.core.errors import CheckpointError, ConfigurationError
        from llama_dyt.data.tokenizing.tokenizer import has_tokenizer
        from llama_dyt.models import build_config, missing_imports

        if not path.is_dir():
            raise CheckpointError(f"{path}: no such folder; give one that holds config.json and safetensors")
        if missing := missing_imports(path):
            raise ConfigurationError(missing)
        with open_weights(path, build_config(path)) as weights:
            yield Opened(
                weights,
                partial(logits_of_folder, path),
                tokenizer=path if has_tokenizer(path) else None,
                generation=path,
            )

    def problems(self, weights: Weights, num_shards: int) -> list[str]:
        return []

    def write(self, job: Job, folder: Path) -> dict[str, str]:
        from dataclasses import replace

        from llama_dyt.convert.hf_files import as_on_the_hub
        from llama_dyt.convert.hf_model import write_folder
        from llama_dyt.models.saved_config import plain_config

        plain = plain_config(job.weights.config)
        weights = job.weights if plain is None or not self.as_on_the_hub else as_on_the_hub(job.weights)
        return write_folder(replace(job, weights=weights), folder, plain)

    def logits(self, folder: Path, input_ids: Tensor, dtype: torch.dtype) -> Tensor:
        from llama_dyt.convert.hf_model import logits_of_folder

        return logits_of_folder(folder, input_ids, dtype)


SOURCE = TARGET = HuggingFace()
