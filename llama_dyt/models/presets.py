"""A model's figures from what `--config` takes: a preset of any family, or the path of an HF config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.suggest import unknown
from llama_dyt.models.size import Size
from llama_dyt.models.spec import FAMILIES, ModelSpec

_PLAIN_MODEL_TYPE = "llama"
"""What a config.json without a model_type is of."""


class SizedFamily(NamedTuple):
    """A family, and the figures of one model of it."""

    family: ModelSpec
    size: Size


def find_preset(name: str) -> SizedFamily | None:
    """The preset that `name` stands for, of whichever family has it, or None. Letter case and `-` for `_` do not
    matter, so `LLaMA-2-7B` is `llama2_7b`.

    Raises:
        ConfigurationError: two families have one.
    """
    plain = name.strip().lower().replace("-", "_")
    found = [SizedFamily(family, size) for family in FAMILIES if (size := family.preset(plain)) is not None]
    if len(found) > 1:
        families = " and ".join(sized.family.name for sized in found)
        raise ConfigurationError(f"--config {name}: {families} have a preset of that name; give yours another")
    return found[0] if found else None


def get_model(name: str) -> SizedFamily:
    """The preset called `name`, or what the `config.json` of HuggingFace's form at the path `name` says.

    Raises:
        ConfigurationError: nothing is called so (the nearest name is given), or the file cannot be used.
    """
    if (preset := find_preset(name)) is not None:
        return preset
    path = Path(name)
    if path.exists():
        return read_model(path)
    if _looks_like_path(name):
        raise ConfigurationError(
            f"--config {name}: no such file; give an HF config.json, a folder that holds one, or one of {_listing()}"
        )
    names = [
        known
        for family in FAMILIES
        for table in (family.presets, family.preset_aliases, family.preset_spellings)
        for known in table
    ]
    guess = unknown("model size", name, names, listed=False)
    raise ConfigurationError(
        f"--config: {guess} (known: {_listing()}, or the path of an HF config.json); one of a family of "
        "your own is brought in by --import its.module"
    )


def read_model(path: str | Path) -> SizedFamily:
    """The family and size in an HF config file, or in the `config.json` of a folder.

    Raises:
        ConfigurationError: the file is absent, is not JSON, is of a family that is not there, or lacks a figure that
            has no usual value.
    """
    path, fields = read_fields(path)
    model_type = fields.get("model_type", _PLAIN_MODEL_TYPE)
    family = FAMILIES.find(str(model_type))
    if family is None:
        types = ", ".join(sorted([*FAMILIES.names(), *FAMILIES.aliases()]))
        home = fields.get("family_module")
        own = f"this one with --import {home}" if home else "those of a family of your own with --import its.module"
        raise ConfigurationError(
            f"{path}: model_type is {model_type!r}; models of the types {types} can be built, and {own}"
        )
    try:
        return SizedFamily(family, family.size_in(fields))
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def read_fields(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """(the file itself, what stands in it) of an HF config file, or of the `config.json` of a folder.

    Raises:
        ConfigurationError: the file is absent, or is not JSON.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = path / "config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError("it does not hold a JSON object")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigurationError(f"{path}: cannot be read as an HF config file: {reason}") from error
    return path, fields


def _looks_like_path(name: str) -> bool:
    return "/" in name or name.startswith(".") or name.endswith(".json")


def _listing() -> str:
    return ", ".join(name for family in FAMILIES for name in (*family.presets, *family.preset_aliases))
