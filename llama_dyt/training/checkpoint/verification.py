"""Comparing what is to be loaded with the checksums it was written with, each byte once for all ranks together."""

from __future__ import annotations

import os
import time
from pathlib import Path

from llama_dyt.core import ranks
from llama_dyt.core.environment import ProcessEnvironment
from llama_dyt.core.errors import CheckpointError
from llama_dyt.core.store import Location, store_of
from llama_dyt.training.checkpoint.marker import (
    MARKER,
    Written,
    damaged_files,
    identity,
    read_marker,
    step_of,
    why_incomplete,
)
from llama_dyt.training.checkpoint.publishing import find_steps


def verify(folder: Location, environment: ProcessEnvironment, part: str = "") -> str:
    """Read a whole checkpoint and compare it. All ranks call it; those that see the same folder share the files.

    Args:
        part: name of a folder in it that is all to be compared, "model" say; all of it when empty.

    Returns:
        What was done, in words.

    Raises:
        CheckpointError: naming each damaged file, the newest checkpoint before it that is whole, and what to type;
            raised on all ranks.
    """
    prefix = f"{part}/" if part else ""
    written = {name: file for name, file in read_marker(folder).items() if name.startswith(prefix)}
    if any(file.sha256 is None for file in written.values()):
        return f"{folder} is of an earlier version and has no checksums: what its files hold was not verified"
    what = f"comparing {folder} with its checksums"
    here = ranks.together(lambda: store_of(folder).local(folder, prefix), f"fetching {folder}")
    begin = time.monotonic()
    seen = ranks.gather(identity(here), what)
    sharing = [rank for rank, theirs in enumerate(seen) if theirs == seen[environment.rank]]
    mine = share(written, sharing.index(environment.rank), len(sharing))
    threads = (os.cpu_count() or 1) // (environment.local_world_size or len(sharing))
    found = ranks.together(lambda: damaged_files(here, mine, threads), what)
    faults = sorted({fault for of_rank in ranks.gather(found, what) for fault in of_rank})
    if faults:
        remedy = ranks.from_first(lambda: _remedy(folder), "looking for a whole checkpoint")
        error = CheckpointError(f"checkpoint {folder} is damaged: {'; '.join(faults)}. {remedy}")
        ranks.raise_together(error, what)
    num_bytes = sum(file.bytes for file in written.values())
    return f"verified {num_bytes / 1e6:,.1f} MB of {folder} in {time.monotonic() - begin:.1f} s (--no-verify skips it)"


def share(written: dict[str, Written], number: int, count: int) -> list[str]:
    """The files that one of `count` ranks reads: about as many bytes as the others."""
    loads = [0] * count
    mine = []
    for name in sorted(written, key=lambda name: (-written[name].bytes, name)):
        taker = loads.index(min(loads))
        loads[taker] += written[name].bytes
        if taker == number:
            mine.append(name)
    return mine


def _remedy(damaged: Location) -> str:
    """What to do in place of loading a damaged checkpoint; reads those before it, the newest first, until one is
    whole."""
    own = step_of(damaged)
    steps = find_steps(damaged.parent) if own is not None else {}
    for step, folder in sorted(steps.items(), reverse=True):
        if step >= own or why_incomplete(folder) is not None:
            continue
        written = read_marker(folder)
        if damaged_files(store_of(folder).local(folder), written):
            continue
        sure = "is whole" if all(file.sha256 for file in written.values()) else "has all its files, without checksums"
        return (
            f"The newest before it that {sure} is of step {step}: give --load {folder}, or move {damaged.name} out of "
            f"{damaged.parent} and give --load auto. Or copy {damaged.name} there again"
        )
    return (
        f"There is no whole one before it in {damaged.parent}: copy {damaged.name} there again, give the --load of "
        "another, or start anew in another --save_dir"
    )


def checkpoint_around(weights_folder: Path) -> Path | None:
    """The checkpoint whose `model/` a folder of weights is; None where it is no checkpoint's."""
    around = weights_folder.absolute().parent
    return around if weights_folder.name == "model" and (around / MARKER).is_file() else None
