"""What makes a checkpoint's `model/` an ordinary HuggingFace folder: config, modeling files and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_dyt.data.tokenizing.tokenizer import save_tokenizer
from llama_dyt.models import save_config


def save_model_files(config: Any, tokenizer: Any, folder: Path) -> None:
    """Write all but the weights. `tokenizer`: None where the run has none."""
    save_config(config, folder)
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)
