"""How often the training state goes to host memory, and where that is; and what is wrong with that."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llama_dyt.config.options import TRAINING, option
from llama_dyt.config.run import RunConfig
from llama_dyt.core import files
from llama_dyt.core.problem import Problem

SHARED_MEMORY = "/dev/shm"


@dataclass(frozen=True)
class SnapshotSettings:
    """Snapshots of a run."""

    snapshot_interval: int = option(
        0,
        "Steps between snapshots of the training state in host memory, of this machine and a neighbour: a run that is "
        "started again on the same machines, with --load auto, goes on from there; 0: none. Takes twice a rank's "
        "masters and moments there, with several machines four times.",
        entries=TRAINING,
        metavar="STEPS",
        at_least=0,
    )
    snapshot_dir: str = option(
        SHARED_MEMORY,
        "Folder of this machine that snapshots are kept in; it outlives processes, and lies in memory where saving is "
        "to be quick.",
        entries=TRAINING,
        metavar="FOLDER",
        path=True,
    )


def snapshot_problems(run: RunConfig) -> Iterator[Problem]:
    """What is wrong with the numbers."""
    if run.snapshots.snapshot_dir != SHARED_MEMORY and not run.snapshots.snapshot_interval:
        reason, remedy = "has no effect without --snapshot_interval", "add that, or leave it out"
        also = ("snapshot_interval",)
        yield Problem("snapshot_dir", run.snapshots.snapshot_dir, reason, remedy, also=also, clause=True)


def snapshot_path_problems(run: RunConfig) -> Iterator[Problem]:
    """What is wrong with the folder."""
    if run.kind not in TRAINING or not run.snapshots.snapshot_interval:
        return
    folder = run.snapshots.snapshot_dir
    if not os.path.isdir(folder):
        reason, remedy = "no such folder on this machine", "make it (mount a tmpfs), or give another"
        yield Problem("snapshot_dir", folder, reason, remedy, also=("snapshot_interval",), local=True)
    elif (reason := files.why_not_writable(Path(folder))) is not None:
        remedy = "give a folder that can be written"
        yield Problem("snapshot_dir", folder, reason, remedy, also=("snapshot_interval",), local=True)


def snapshot_warnings(run: RunConfig) -> Iterator[str]:
    """What is probably not meant."""
    if run.kind in TRAINING and run.snapshots.snapshot_interval and run.run.load != "auto":
        yield (
            "--snapshot_interval without --load auto: snapshots are taken, and a start by this command would not go on "
            "from them; add --load auto"
        )
