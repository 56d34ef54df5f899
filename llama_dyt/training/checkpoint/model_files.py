"""What makes a checkpoint's `model/` an ordinary HuggingFace folder, or its `adapter/` one of peft's, but weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_dyt.core import files
from llama_dyt.data.tokenizing.tokenizer import save_tokenizer
from llama_dyt.models import save_config
from llama_dyt.models.adapters import Adapter, write_config
from llama_dyt.training.checkpoint.base import BASE_FILE, Base


def save_model_files(config: Any, tokenizer: Any, folder: Path) -> None:
    """Write all but the weights. `tokenizer`: None where the run has none."""
    save_config(config, folder)
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)


def save_adapter_files(adapter: Adapter, base: Base, tokenizer: Any, folder: Path) -> None:
    """Write an adapter's config, the reference to its base and the tokenizer."""
    write_config(adapter, folder, base.path)
    files.write_json(folder / BASE_FILE, base.to_json())
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)
