"""The families there are, by the `model_type` of their HF configs. A new one is one more file in `specs/` and a folder
beside `llama/` with its classes, or a user's own file that holds both and does

    FAMILIES.register(ModelSpec(name="mine", config_class=f"{__name__}:MyConfig", …))

and is brought in by `--import`.
"""

from __future__ import annotations

from typing import Any

from llama_dyt.core.registry import Registry
from llama_dyt.models.model_spec import Cut, ModelSpec

__all__ = ["FAMILIES", "Cut", "ModelSpec", "family_of"]

FAMILIES: Registry[ModelSpec] = Registry("model family", "llama_dyt.models.specs", "FAMILY")


def family_of(config: Any) -> ModelSpec:
    """The family of an HF config.

    Raises:
        ConfigurationError: none has its model type.
    """
    return FAMILIES.get(config.model_type)
