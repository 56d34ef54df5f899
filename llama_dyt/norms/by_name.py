"""The norm of a model, by the `norm_type` in its config.

In a saved model's folder stands another file under this name, which knows the norm of that model alone.
"""

from __future__ import annotations

from typing import Any

from llama_dyt.norms.spec import NORMS, NormSpec


def norm_of(config: Any) -> NormSpec:
    """The norm that a config names.

    Raises:
        ValueError: there is none of that name.
    """
    norm = NORMS.find(config.norm_type)
    if norm is not None:
        return norm
    home = getattr(config, "norm_module", None)
    hint = f"; it is in the module {home}: --import {home}" if home else "; one of your own needs --import its.module"
    raise ValueError(f"norm_type is {config.norm_type!r}; there are: {', '.join(sorted(NORMS.names()))}{hint}")
