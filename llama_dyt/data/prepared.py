"""Opening prepared data by its path, whichever of the known formats lies there.

Its own file because the loader asks one question of a path and shall not know the formats.
"""

from __future__ import annotations

import os
from pathlib import Path

from llama_dyt.data.arrow import is_arrow
from llama_dyt.data.megatron import MegatronTokens, find_megatron
from llama_dyt.data.shards import is_shards, open_shards
from llama_dyt.data.token_array import TokenArray
from llama_dyt.errors import DataError

__all__ = ["is_arrow", "open_tokens"]


def open_tokens(path: str | os.PathLike, split: str = "train") -> TokenArray | None:
    """Our own shards or Megatron's files at a path; None when the path is neither.

    Raises:
        DataError: it is one, but not complete or not sound, or it has no such split.
    """
    folder = Path(os.path.expanduser(path))
    if is_shards(folder):
        return open_shards(folder, split)
    if folder.is_dir() and any(folder.glob(".journal_*/settings.json")):
        raise DataError(f"{path}: prepared in part; give the same prepare_data.py command again to finish it")
    stem = find_megatron(folder)
    if stem is None:
        return None
    if split != "train":
        raise DataError(f"{path}: Megatron's files have no split '{split}'; name held-out files in place of it")
    return MegatronTokens(stem)
