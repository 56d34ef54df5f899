"""Makes a saved model's folder load without this package.

The model classes must not read the package's sources: a copy of them that came out of such a folder has no package
around it. transformers copies a class's own file and its siblings only, and these sources lie in several packages; so
they are copied here into one flat folder, under names made of their whole module path, their imports rewritten to
siblings. What travels are the files of the family's classes and what they import. Of the norms the model's own travels,
and the one that a config has by default, since transformers makes such a config to compare with. A user's norm or
family travels as ours do.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
import sysconfig
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.models.spec import FAMILIES, ModelSpec
from llama_dyt.norms.spec import NORMS, NormSpec

_BY_NAME = "llama_dyt.norms.by_name"
_DEFAULT_NORM = "dyt"
_STAND_INS = {
    "llama_dyt.models.spec": "llama_dyt.models.travelling.spec",
    "llama_dyt.norms.spec": "llama_dyt.norms.travelling.spec",
    "llama_dyt.config.options": "llama_dyt.norms.travelling.options",
}
"""Modules that do not travel → what stands in the folder for them."""

_INSTALLED = sysconfig.get_path("purelib")

_IMPORT = re.compile(r"^(?P<indent>\s*)from (?P<module>llama_dyt[\w.]*) import", flags=re.MULTILINE)
_OTHER_IMPORT = re.compile(r"^\s*(import llama_dyt\b|from llama_dyt import)", flags=re.MULTILINE)
_TRAVELS = ("llama_dyt.models.", "llama_dyt.norms.")


def auto_map(family: ModelSpec) -> dict[str, str]:
    """transformers' Auto classes → the file and class in the folder of a model of this family."""
    classes = {
        "AutoConfig": family.load_config_class(),
        "AutoModel": family.load_decoder_class(),
        "AutoModelForCausalLM": family.load_causal_lm_class(),
    }
    return {auto: f"{_flat(own.__module__, family)}.{own.__name__}" for auto, own in classes.items()}


def modeling_sources(family_name: str, norm_name: str) -> dict[str, str]:
    """File name → text of every file that the folder of a model with this norm needs, imports between them relative.

    Raises:
        ConfigurationError: the file of a norm or a family, a user's own, is none, or needs another of theirs or what of
            this package does not travel, which would not be in the folder.
        RuntimeError: one of ours imports something else of this package, likewise.
    """
    family, norm = FAMILIES.get(family_name), NORMS.get(norm_name)
    norms = {entry.name: entry for entry in (NORMS.get(_DEFAULT_NORM), norm)}
    classes = sorted(_modules_of(family))
    users = {norm.module: f"--norm {norm.name}", **dict.fromkeys(classes, f"model family {family.name}")}
    users = {module: what for module, what in users.items() if not _ours(module)}
    waiting = [(module, None) for module in classes]
    homes: dict[str, str] = {}
    sources: dict[str, str] = {}
    while waiting:
        module, user = waiting.pop()
        name = f"{_flat(module, family)}.py"
        if homes.setdefault(name, module) != module:
            raise ConfigurationError(f"{module} and {homes[name]} would have one name in a saved folder: rename yours")
        if name in sources:
            continue
        user = module if module in users else user
        if module == _BY_NAME:
            text = _generated_by_name([*norms.values()])
        elif module in users:
            text = _source_of_user(module, users[module])
        else:
            text = _source(_STAND_INS.get(module, module))
        needed = []

        def sibling(found: re.Match[str], needed: list[str] = needed, module: str = module, user: Any = user) -> str:
            wanted = found["module"]
            if not _travels(wanted):
                if user is not None:
                    raise _cannot_travel(users[user], user, wanted if module == user else module)
                raise RuntimeError(f"{module} is exported with models but imports {wanted}")
            needed.append(wanted)
            return f"{found['indent']}from .{_flat(wanted, family)} import"

        text = _IMPORT.sub(sibling, text)
        if module == _BY_NAME:
            needed += [*(entry.module for entry in norms.values()), "llama_dyt.norms.spec"]
        sources[name] = text
        waiting += [(wanted, user) for wanted in needed]
    return sources


def require_travelling(config: Any) -> None:
    """Raises ConfigurationError where the files of a model to be saved could not go with it."""
    modeling_sources(config.model_type, config.norm_type)


def export_modeling_files(folder: str | Path) -> None:
    """Write the modeling files into `folder` and name them in its config.json.

    Args:
        folder: a saved model: it has a config.json.

    Raises:
        ConfigurationError: the norm or the family of the model is a user's and cannot travel.
    """
    folder = Path(folder)
    config_path = folder / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    for name, text in modeling_sources(config["model_type"], config["norm_type"]).items():
        (folder / name).write_text(text, encoding="utf-8")
    own = auto_map(FAMILIES.get(config["model_type"]))
    if config.get("auto_map") != own:
        config["auto_map"] = own
        config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def users_module(module: str) -> str | None:
    """A module's name where it is a user's; None where it is of this package."""
    return None if _ours(module) else module


def _ours(module: str) -> bool:
    return module.startswith("llama_dyt.")


def _travels(module: str) -> bool:
    """Whether a module can be copied beside the model's. What is imported from a package may be another file."""
    if module in _STAND_INS or not module.startswith(_TRAVELS):
        return module in _STAND_INS
    found = importlib.util.find_spec(module)
    return found is not None and found.submodule_search_locations is None


def _modules_of(family: ModelSpec) -> set[str]:
    loaded = (family.load_config_class(), family.load_decoder_class(), family.load_causal_lm_class())
    return {own.__module__ for own in loaded}


def _flat(module: str, family: ModelSpec) -> str:
    """The name of a module's file in the folder, without `.py`: HuggingFace's for ours that its config names."""
    if _ours(module) and module in _modules_of(family):
        return module.rpartition(".")[2]
    return module.replace(".", "_")


def _source(module: str) -> str:
    return Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")


def _source_of_user(module: str, what: str) -> str:
    """Raises ConfigurationError where the file of a user's norm or family is not there or imports a neighbour."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if module == "__main__" or file is None or not Path(file).is_file():
        raise ConfigurationError(
            f"{what}: its classes cannot travel with the model, since {module} is no module with a file: put them in a "
            "file of their own and bring it in by --import"
        )
    text = Path(file).read_text(encoding="utf-8")
    if wrong := _OTHER_IMPORT.search(text):
        raise _cannot_travel(what, module, text[wrong.start() :].strip().splitlines()[0])
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module] if not node.level else [module]
        if any(_is_beside(name.partition(".")[0], module.partition(".")[0]) for name in names):
            raise _cannot_travel(what, module, ast.unparse(node))
    return text


def _is_beside(package: str, own: str) -> bool:
    """Whether a package is the user's own, or neither Python's nor this program's nor installed: it lies beside."""
    if package == own or package == "llama_dyt" or package in sys.stdlib_module_names:
        return package == own
    spec = importlib.util.find_spec(package)
    where = [spec.origin, *(spec.submodule_search_locations or ())] if spec is not None else []
    if any(Path(path).is_relative_to(_INSTALLED) for path in where if path):
        return False
    return package not in packages_distributions()  # looks through all there is: takes half a second


def _cannot_travel(what: str, module: str, needed: str) -> ConfigurationError:
    return ConfigurationError(
        f"{what}: its file {module} cannot travel with the model, since it needs {needed!r}: let it import torch, "
        "transformers, the standard library, llama_dyt.norms, llama_dyt.models' classes, ops, spec and size, and "
        "llama_dyt.config.options only"
    )


def _generated_by_name(norms: list[NormSpec]) -> str:
    """What stands for `llama_dyt.norms.by_name`: these norms, brought in by their own files."""

    def flat(module: str) -> str:
        return module.replace(".", "_")

    lines = [f"from .{flat('llama_dyt.norms.spec')} import NORMS"]
    for number, norm in enumerate(norms):
        if _ours(norm.module):
            lines += [f"from .{flat(norm.module)} import NORM as norm_{number}"]
        else:  # it registers its norm itself
            lines += [f"from .{flat(norm.module)} import __name__ as norm_{number}"]
    registered = "\n".join(f"NORMS.register(norm_{number})" for number, norm in enumerate(norms) if _ours(norm.module))
    brought = "\n".join(lines)
    return f'''"""The norms that the model in this folder may have, by the `norm_type` in its config."""

{brought}

{registered}


def norm_of(config):
    """The norm that a config names. Raises ValueError where this folder does not have it."""
    if config.norm_type not in NORMS:
        raise ValueError(f"norm_type is {{config.norm_type!r}}; this folder has the files of {{', '.join(NORMS)}}")
    return NORMS[config.norm_type]
'''
