"""Stands for `llama_dyt.config.options` in a saved model's folder, where there is no command line."""

from dataclasses import field
from typing import Any


def option(default: Any, help: str = "", **flag: Any) -> Any:
    """A dataclass field with its default."""
    return field(default=default)
