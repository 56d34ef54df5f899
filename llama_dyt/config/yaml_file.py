"""Reading and writing a run as YAML: flat keys, each the long name of a flag.

YAML has traps of its own: keys given twice pass silently, and `3e-4` is read as a text. The same reading serves
--config_file, a checkpoint's config.yaml and the recipes in configs/.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llama_dyt.config.options import Option
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.problem import Problem
from llama_dyt.core.suggest import unknown

KIND_KEY = "kind"
"""The one key that is no flag: the entry a resolved run was written by."""
NOT_IN_A_FILE = ("config_file",)


def dump(values: Mapping[str, Any]) -> str:
    """`values` as block-style YAML in their own order."""
    import yaml

    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=1000)


def load_mapping(source: str | Path) -> tuple[dict[str, Any], str]:
    """(mapping, prefix for messages about it) of a YAML text (str) or file (Path). Nothing at all is an empty mapping.

    Raises:
        ConfigurationError: it cannot be read, is not YAML, is no mapping, or has a key twice. One line, with the file
            and the line in it.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that stands twice, of which YAML would silently take the last."""

        def construct_mapping(self, node, deep=False):
            seen = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if key in seen:
                    raise yaml.MarkedYAMLError(problem=f"key {key!r} stands twice", problem_mark=key_node.start_mark)
                seen.add(key)
            return super().construct_mapping(node, deep)

    where = f"{source}: " if isinstance(source, Path) else ""
    try:
        text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
        mapping = yaml.load(text, Loader=Loader)
    except OSError as error:
        problem = Problem("config_file", source, f"cannot be read: {error.strerror}")
        raise ConfigurationError(problem) from error
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise ConfigurationError(f"{where}{line}not usable YAML: {getattr(error, 'problem', None) or error}") from error
    if mapping is None:
        return {}, where
    if not isinstance(mapping, dict):
        raise ConfigurationError(f"{where}holds a {type(mapping).__name__}, not keys and values such as 'lr: 3e-4'")
    return mapping, where


def canonical_values(
    mapping: Mapping[str, Any], options: Iterable[Option], where: str, kind: str
) -> tuple[dict[str, Any], list[str]]:
    """(values by long flag name, converted; problems, `Problem`s where a flag's value is wrong) of a mapping's keys.

    Args:
        mapping: keys may be any spelling of a flag, with hyphens or underscores.
        options: the flags there are.
        where: put before each message: "file.yaml: ", or nothing.
        kind: the entry that reads it; a `kind` key that says otherwise is a problem.
    """
    by_spelling = {spelling: opt for opt in options for spelling in (opt.name, *opt.spellings)}
    values: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in mapping.items():
        if key == KIND_KEY:
            if value != kind:
                problems.append(
                    f"{where}written for {value!r}, not for {kind!r}; give it to {value}.py, or drop 'kind'"
                )
            continue
        opt = by_spelling.get(str(key).replace("-", "_"))
        if opt is None:
            problems.append(f"{where}{unknown('key', str(key), by_spelling, listed=False)}")
        elif opt.name in NOT_IN_A_FILE and where:
            problems.append(f"{where}{key}: cannot stand in a YAML file; put all keys into this one")
        elif opt.name in values:
            problems.append(f"{where}{key}: the flag --{opt.name} is given twice, in two spellings; keep one")
        else:
            try:
                values[opt.name] = opt.convert(value)
            except ValueError as error:
                problems.append(Problem(opt.name, None, str(error), text=f"{where}{key}: {error}"))
    return values, problems
