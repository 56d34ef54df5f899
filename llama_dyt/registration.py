"""Makes transformers' Auto classes know our models, without importing transformers before anybody needs it.

Its own file because it is the one import with a side effect. Importing transformers and torch takes seconds, and
`import llama_dyt.config` must not: a wrong flag is answered at once. So what is registered is a stand-in for the
config class; the first config asked of it imports `llama_dyt.models`, which registers the real classes.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
from importlib.machinery import ModuleSpec, PathFinder

# Where transformers defines AutoConfig, which every other Auto class asks first.
AUTO_MODULE = "transformers.models.auto.configuration_auto"


class LlamaDytConfigOnDemand:
    """Stands for LlamaDytConfig in transformers' table of configs: whatever it is asked to make is the real one."""

    model_type = "llama_dyt"

    def __new__(cls, *args, **kwargs):
        return _real_config()(*args, **kwargs)

    @classmethod
    def from_dict(cls, *args, **kwargs):
        return _real_config().from_dict(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        return _real_config().from_pretrained(*args, **kwargs)


def _real_config() -> type:
    return importlib.import_module("llama_dyt.models").LlamaDytConfig


class _RegisterAfterAutoConfig(importlib.abc.MetaPathFinder):
    """Finds AUTO_MODULE as Python would, and registers the stand-in once it has run.

    Nothing may be imported at that moment: transformers is in the middle of its own imports.
    """

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        if fullname != AUTO_MODULE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_then_register(module) -> None:
                execute(module)
                module.AutoConfig.register(LlamaDytConfigOnDemand.model_type, LlamaDytConfigOnDemand, exist_ok=True)

            spec.loader.exec_module = execute_then_register
        return spec


def register_models() -> None:
    """Register now where AutoConfig is imported already, else as soon as it is."""
    if AUTO_MODULE in sys.modules:
        # Nobody is waiting for a quick answer any more: the real classes.
        importlib.import_module("llama_dyt.models")
    elif not any(isinstance(finder, _RegisterAfterAutoConfig) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegisterAfterAutoConfig())
