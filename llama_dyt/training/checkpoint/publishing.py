"""The checkpoints in a --save_dir, and putting in order what a run left that died over one.

How a folder gets its name, and what is left where that is cut short, is the store's (`core.store`).
"""

from __future__ import annotations

from collections.abc import Callable

from llama_dyt.core.marker import find_steps, is_step_name, is_whole
from llama_dyt.core.store import Location, store_of

__all__ = ["clear_leftovers", "find_steps", "home_of"]


def home_of(folder: Location) -> Location:
    """The name that a checkpoint found by `find_steps` has, or is to be given."""
    return store_of(folder).home_of(folder)


def clear_leftovers(save_dir: Location, say: Callable[[str], None]) -> None:
    """Put in order what runs left that were killed while saving. Only for who holds the folder."""
    store_of(save_dir).clear(save_dir, is_step_name, is_whole, say)
