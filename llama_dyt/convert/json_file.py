"""A small JSON file that tells a model's figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llama_dyt.core.errors import CheckpointError


def read_figures(path: Path) -> dict[str, Any]:
    """What stands in the file.

    Raises:
        CheckpointError: it is not there, or is no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; copy it again") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return found


def whole_number(figures: dict[str, Any], key: str, path: Path) -> int:
    """A figure of 1 or more.

    Raises:
        CheckpointError: it is not there, or none.
    """
    value = figures.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(f"{path}: {key} is {value!r}, and a whole number of 1 or more is needed")
    return value
