"""The checkpoints in a --save_dir, the file that names the newest, and putting in order what a run left that died over
one.

How a folder gets its name, and what is left where that is cut short, is the store's (`core.store`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

from llama_dyt.core import files
from llama_dyt.core.marker import Written, find_steps, is_step_name, is_whole, step_folder, step_of
from llama_dyt.core.store import Location, Staging, store_of

__all__ = ["LATEST", "clear_leftovers", "find_steps", "home_of", "latest_step", "point_to_latest", "write_texts"]

LATEST = "latest"
"""The file in a --save_dir whose only line names the newest whole checkpoint in it. For programs beside: a run that is
resumed looks at the markers, which cannot be behind."""


def home_of(folder: Location) -> Location:
    """The name that a checkpoint found by `find_steps` has, or is to be given."""
    return store_of(folder).home_of(folder)


def clear_leftovers(save_dir: Location, say: Callable[[str], None]) -> None:
    """Put in order what runs left that were killed while saving. Only for who holds the folder."""
    store_of(save_dir).clear(save_dir, is_step_name, is_whole, say)


def write_texts(staging: Staging, texts: Mapping[str, str]) -> dict[str, Written]:
    """Write files of text, by name in the checkpoint, into one in the making; as the marker is to have them."""
    written = {}
    for name, text in texts.items():
        folder, _, plain = name.rpartition("/")
        files.write_text(staging.folder(folder) / plain, text)
        content = text.encode()
        written[name] = Written(len(content), hashlib.sha256(content).hexdigest())
    return written


def point_to_latest(save_dir: Location, step: int, say: Callable[[str], None]) -> None:
    """Have `LATEST` name the newest whole checkpoint, now that the one of `step` is. Only for who holds the folder.

    Written whole or not at all, and after the marker: what it names is there. Where it cannot be written that is said;
    the checkpoint is whole all the same.
    """
    later = ((number, folder) for number, folder in sorted(find_steps(save_dir).items(), reverse=True) if number > step)
    newest = next((number for number, folder in later if is_whole(folder)), step)
    try:
        store_of(save_dir).write_text(save_dir / LATEST, f"{step_folder(save_dir, newest).name}\n")
    except OSError as error:
        say(f"{save_dir / LATEST} could not be written, and may name an older checkpoint: {error.strerror or error}")


def latest_step(save_dir: Location) -> int | None:
    """The step that `LATEST` names; None where it is not there, or says nothing that is one."""
    try:
        name = (save_dir / LATEST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return step_of(save_dir / name) if is_step_name(name) else None
