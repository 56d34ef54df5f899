"""A finished model from wherever it is named: a run's folder, a checkpoint, an HF folder, the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_dyt.core.errors import CheckpointError, ConfigurationError, DataError
from llama_dyt.core.store import at, store_of


def model_folder(path: str, flag: str = "--model_path") -> str:
    """The HF folder that `path` means, or `path` itself where it is no folder here and so may be a hub name.

    Args:
        flag: what gave it, for messages.

    Raises:
        CheckpointError: it is a folder, or looks like one, and holds no model or complete checkpoint.
    """
    folder = at(path, flag.lstrip("-")).expanduser()
    if (folder / "config.json").is_file():
        return str(store_of(folder).local(folder))
    if folder.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        from llama_dyt.training.checkpoint.reader import find_checkpoint
        from llama_dyt.training.plan.adapters import holds_adapter

        found = folder if holds_adapter(folder) else find_checkpoint(str(folder), folder, flag=flag)
        if holds_adapter(found):
            raise CheckpointError(f"{flag} {path}: {found} holds an adapter alone; give it as --adapter")
        return str(store_of(found).local(found, "model/") / "model")
    return path


def load_trained(path: str, device: str, flag: str = "--model_path", adapter: str | None = None) -> tuple[Any, Any]:
    """(model in evaluation mode on `device`, tokenizer) of an HF folder or hub name.

    Args:
        adapter: folder of an adapter to merge into it, None for none.

    Raises:
        CheckpointError: transformers cannot load the model; its reason is given.
        DataError, ConfigurationError: there is no usable tokenizer, or a module of the user's is needed.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from llama_dyt.data.tokenizing.tokenizer import load_tokenizer
    from llama_dyt.models import FAMILIES, missing_imports
    from llama_dyt.models.auto_classes import register_auto_classes

    if missing := missing_imports(Path(path)):
        raise ConfigurationError(missing)
    for family in FAMILIES:
        register_auto_classes(family)
    try:
        tokenizer = load_tokenizer(path, flag=flag)
    except DataError as error:
        raise DataError(f"{flag} {path}: {error}") from error
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{flag} {path}: no model could be loaded: {reason}") from error
    if adapter is not None:
        from llama_dyt.models.adapters import merge_into

        merge_into(model.float(), Path(adapter))
    return model.to(device).eval(), tokenizer
