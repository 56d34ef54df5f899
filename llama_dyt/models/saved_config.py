"""The config.json of a saved model: written with all that the folder needs, and asked for the user's modules it needs.

A module of the user's is named where it is missing, and never imported because a file says so.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from llama_dyt.core.problem import Problem
from llama_dyt.models.export import export_modeling_files, users_module
from llama_dyt.models.spec import FAMILIES, family_of
from llama_dyt.norms.by_name import norm_of
from llama_dyt.norms.spec import NORMS

_OF_SAVING = ("transformers_version", "architectures", "auto_map", "dtype", "model_type", "_name_or_path")


def save_config(config: Any, folder: str | Path) -> None:
    """Write config.json and the modeling files that make a folder load without this package.

    A model in which nothing is other than in transformers' own class is saved as one of that class, and needs no files.

    Raises:
        ConfigurationError: a norm or family of the user's cannot travel.
    """
    family = family_of(config)
    plain = plain_config(config)
    if plain is not None:
        plain.save_pretrained(folder)
        return
    config = type(config).from_dict(config.to_dict())
    causal_lm = family.load_causal_lm_class()
    for field, module in (("norm_module", norm_of(config).module), ("family_module", causal_lm.__module__)):
        if users_module(module) is not None:
            setattr(config, field, module)
    config.architectures = [causal_lm.__name__]
    config.dtype = "float32"
    config.save_pretrained(folder)
    export_modeling_files(folder)


def plain_config(config: Any) -> Any | None:
    """The config of transformers' own class that computes the same with the same weights; None where there is none: a
    norm or an embedding is ours, or a field has a value that their class has not.

    What decides is reading it back: it must give the config that it was made of.
    """
    family = family_of(config)
    if family.plain_type is None or config.norm_type != family.plain_norm or config.embedding_scale:
        return None
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    theirs = CONFIG_MAPPING[family.plain_type]
    known = {field.name for field in fields(theirs)} - {*_OF_SAVING}
    ours = config.to_dict()
    plain = theirs(**{name: value for name, value in ours.items() if name in known})
    read = type(config)(
        **{name: value for name, value in plain.to_dict().items() if name in known}, norm_type=family.plain_norm
    )
    if _meaning(read) != _meaning(config):
        return None
    plain.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family.plain_type]]
    plain.dtype = "float32"
    return plain


def _meaning(config: Any) -> dict[str, Any]:
    """What decides about a model, of all that a config says: its class's fields. One that is None says nothing."""
    own = {field.name for field in fields(type(config))} - {*_OF_SAVING}
    return {name: value for name, value in config.to_dict().items() if name in own and value is not None}


def missing_imports(folder: Path) -> list[Problem]:
    """What must be given to --import before the model in a folder can be made; none where there is no config.json.

    Args:
        folder: of an HF model; of one that is not here nothing is known.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []  # judged where the config is read
    asked = (
        ("norm", NORMS, config.get("norm_type"), config.get("norm_module")),
        ("model family", FAMILIES, config.get("model_type"), config.get("family_module")),
    )
    needed: dict[str, list[str]] = {}
    for kind, known, name, module in asked:
        if module is not None and known.find(str(name)) is None:
            needed.setdefault(module, []).append(f"the {kind} {name!r}")
    return [
        Problem(
            "import",
            module,
            f"{folder} has {' and '.join(things)}, which {'is' if len(things) == 1 else 'are'} in this module",
            f"give --import {module}, where Python finds it",
        )
        for module, things in needed.items()
    ]
