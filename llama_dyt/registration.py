"""Makes transformers' Auto classes know our models, without importing transformers before anybody needs it.

Its own file because it is the one import with a side effect. Importing transformers and torch takes seconds, and
`import llama_dyt.config` must not: a wrong flag is answered at once. So where transformers' Auto classes are not
imported yet, `llama_dyt.models`, which registers itself, is imported right after them.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
from importlib.machinery import ModuleSpec, PathFinder

# Where AutoConfig is defined. The other Auto classes' modules import it.
AUTO_MODULE = "transformers.models.auto.configuration_auto"


class _AfterAutoClasses(importlib.abc.MetaPathFinder):
    """Finds AUTO_MODULE as usual, and has our models imported once it has run."""

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        if fullname != AUTO_MODULE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_then_register(module) -> None:
                execute(module)
                importlib.import_module("llama_dyt.models")

            spec.loader.exec_module = execute_then_register
        return spec


def register_models() -> None:
    """Register now where transformers' Auto classes are imported already, else as soon as they are."""
    if AUTO_MODULE in sys.modules:
        importlib.import_module("llama_dyt.models")
    elif not any(isinstance(finder, _AfterAutoClasses) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterAutoClasses())
