"""Which course of a run snapshots belong to: an id beside its checkpoints, in `--save_dir/.snapshots.1`.

A snapshot whose id is not the one there is of a run that ended, began anew or went back to an earlier checkpoint: it is
never gone on from.
"""

from __future__ import annotations

import json
from contextlib import suppress

from llama_dyt.core.store import Location, store_of

_NAME = "snapshots"


def read_run_id(save_dir: Location) -> str | None:
    """The id of the course whose snapshots count; None for none."""
    if not save_dir.is_dir():
        return None
    records = store_of(save_dir).records(save_dir, _NAME)
    for number in reversed(records.numbers()):
        with suppress(ValueError, KeyError, TypeError):
            return json.loads(records.read(number) or b"")["run"]
    return None


def write_run_id(save_dir: Location, run_id: str) -> None:
    """Have snapshots of this id count from now on, and no others.

    Raises:
        OSError: it cannot be written.
    """
    records = store_of(save_dir).records(save_dir, _NAME)
    records.prepare()
    before = records.numbers()
    line = json.dumps({"run": run_id}).encode() + b"\n"
    records.make(max(before, default=0) + 1, lambda identity: line)
    records.close()
    for number in before:
        records.remove(number)


def remove_run_id(save_dir: Location) -> bool:
    """Have no snapshots count; whether there was an id."""
    if not save_dir.is_dir():
        return False
    records = store_of(save_dir).records(save_dir, _NAME)
    numbers = records.numbers()
    for number in numbers:
        records.remove(number)
    return bool(numbers)
