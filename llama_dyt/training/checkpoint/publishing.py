"""The checkpoints in a --save_dir, and putting in order what a run left that died over one.

How a folder gets its name, and what is left where that is cut short, is the store's (`core.store`).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from llama_dyt.core.store import Location, store_of
from llama_dyt.training.checkpoint.marker import step_of, why_incomplete

_NAME = re.compile(r"step_\d+")


def find_steps(save_dir: Location) -> dict[int, Location]:
    """Step → its folder, whole or not, oldest first. Nothing is changed."""
    folders = store_of(save_dir).folders(save_dir, _is_whole)
    return dict(sorted((step_of(save_dir / name), folder) for name, folder in folders.items() if _is_ours(name)))


def home_of(folder: Location) -> Location:
    """The name that a checkpoint found by `find_steps` has, or is to be given."""
    return store_of(folder).home_of(folder)


def clear_leftovers(save_dir: Location, say: Callable[[str], None]) -> None:
    """Put in order what runs left that were killed while saving. Only for who holds the folder."""
    store_of(save_dir).clear(save_dir, _is_ours, _is_whole, say)


def _is_ours(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def _is_whole(folder: Location) -> bool:
    return why_incomplete(folder) is None
