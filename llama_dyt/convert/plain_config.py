"""HF configs of plain models from figures of other programs, and back: is a model of ours what plain classes read?"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.models import build_config
from llama_dyt.models.saved_config import plain_config

_OF_SAVING = ("transformers_version", "architectures", "auto_map", "dtype", "_name_or_path")


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
    own; None where there is none."""
    plain = plain_config(config)
    if plain is None:
        return None
    return {name: value for name, value in plain.to_dict().items() if name not in _OF_SAVING}
