"""HF configs of plain models from figures of other programs, and back: is a model of ours what plain classes read?"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.models import build_config, family_of

_OF_SAVING = ("transformers_version", "architectures", "auto_map", "dtype", "model_type", "_name_or_path")


def config_of(figures: dict[str, Any], norm: str | None = None) -> Any:
    """The config of a family of ours from fields of a config.json, its `model_type` among them.

    Raises:
        ConfigurationError: figures that do not fit together, or of a type that no family reads.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(figures), encoding="utf-8")
        try:
            return build_config(folder, norm)
        except ConfigurationError as error:
            raise ConfigurationError([problem.replace(f"{folder}: ", "") for problem in error.problems]) from error


def plain_fields(config: Any) -> dict[str, Any] | None:
    """The fields of the plain config.json that means the same model as a config of ours, for classes of transformers'
    own; None where there is none: a norm or an embedding was patched.

    What decides is reading it back: it must give the config that it was made of.
    """
    from transformers import AutoConfig

    for model_type in family_of(config).aliases:
        try:
            plain_class = type(AutoConfig.for_model(model_type))
        except ValueError:  # transformers has none of that type
            continue
        known = set(plain_class().to_dict())
        fields = {key: value for key, value in config.to_dict().items() if key in known and key not in _OF_SAVING}
        fields["model_type"] = model_type
        if _meaning(config_of(fields)) == _meaning(config):
            return fields
    return None


def _meaning(config: Any) -> dict[str, Any]:
    """What decides about a model, of all that a config says: its class's fields. One that is None says nothing."""
    own = {field.name for field in dataclasses.fields(type(config))} - {*_OF_SAVING}
    return {key: value for key, value in config.to_dict().items() if key in own and value is not None}
