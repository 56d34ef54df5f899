"""HF configs from figures of other programs."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.models import build_config


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
