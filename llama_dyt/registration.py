"""Makes other libraries know our models, without importing any of them before somebody needs it.

transformers' Auto classes learn of our families, and peft where its adapters go in them if nobody says: to the layers
of the type whose names they have (a llama). It is the one import of this package with a side effect. Importing
transformers and torch takes seconds, and `import llama_dyt.config` must not: a wrong flag is answered at once. So the
tables are added to when they are there, and what is registered with transformers are stand-ins for the config classes;
the first config asked of one imports and registers the real classes.
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_dyt.models.model_spec import ModelSpec


def _stand_in(family: ModelSpec) -> type:
    class ConfigOnDemand:
        """Stands for a family's config in transformers' table: whatever it is asked to make is the real one."""

        model_type = family.name

        def __new__(cls, *args, **kwargs):
            return _real_config(family)(*args, **kwargs)

        @classmethod
        def from_dict(cls, *args, **kwargs):
            return _real_config(family).from_dict(*args, **kwargs)

        @classmethod
        def from_pretrained(cls, *args, **kwargs):
            return _real_config(family).from_pretrained(*args, **kwargs)

    return ConfigOnDemand


def _real_config(family: ModelSpec) -> type:
    from llama_dyt.models.auto_classes import register_auto_classes

    return register_auto_classes(family)


def _register_stand_ins(auto: ModuleType) -> None:
    for family in _families():
        auto.AutoConfig.register(family.name, _stand_in(family), exist_ok=True)


def _add_default_targets(constants: ModuleType) -> None:
    for name, table in vars(constants).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and isinstance(table, dict):
            for family in _families():
                for alias in family.aliases:
                    if alias in table:
                        table.setdefault(family.name, table[alias])


def _families() -> Iterable[ModelSpec]:
    """Those there are; their specs import neither torch nor transformers."""
    from llama_dyt.models.spec import FAMILIES

    return FAMILIES


# Where transformers defines AutoConfig, which every other Auto class asks first.
AUTO_MODULE = "transformers.models.auto.configuration_auto"
# Where peft keeps the names of layers that each kind of adapter goes to, by model type.
TARGETS_MODULE = "peft.utils.constants"

_AFTER_IMPORT: dict[str, Callable[[ModuleType], None]] = {
    AUTO_MODULE: _register_stand_ins,
    TARGETS_MODULE: _add_default_targets,
}


class _AddAfterImport(importlib.abc.MetaPathFinder):
    """Finds the modules of _AFTER_IMPORT as Python would, and adds to them once they have run.

    Nothing may be imported at that moment: their packages are in the middle of their own imports.
    """

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        if fullname not in _AFTER_IMPORT:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_then_add(module) -> None:
                execute(module)
                _AFTER_IMPORT[fullname](module)

            spec.loader.exec_module = execute_then_add
        return spec


def register_models() -> None:
    """Register now where the other libraries are imported already, else as soon as they are."""
    if not any(isinstance(finder, _AddAfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AddAfterImport())
    if AUTO_MODULE in sys.modules:
        # Nobody is waiting for a quick answer any more: the real classes.
        for family in _families():
            _real_config(family)
    if TARGETS_MODULE in sys.modules:
        _add_default_targets(sys.modules[TARGETS_MODULE])
