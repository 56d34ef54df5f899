"""Which trackers a run has beside those that are always on, and what it is called there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llama_dyt.config.options import TRAINING, option
from llama_dyt.config.run import RunConfig
from llama_dyt.core import files
from llama_dyt.core.problem import Problem


@dataclass(frozen=True)
class TrackingSettings:
    """What a run is called in trackers, and where they keep it."""

    tracker_dir: str = option(
        "trackers",
        "Folder for what trackers keep on this machine: wandb's files, mlflow's and aim's runs.",
        entries=TRAINING,
        metavar="FOLDER",
        path=True,
    )
    tracker_project_name: str = option(
        "llama_dyt",
        "Project (wandb) or experiment (mlflow, aim) that the run stands in.",
        spellings=("project_name",),
        entries=TRAINING,
        metavar="NAME",
    )
    tracker_run_name: str | None = option(
        None,
        "Name of the run in trackers; none takes that of the --save_dir.",
        spellings=("run_name",),
        entries=TRAINING,
        metavar="NAME",
    )
    tracker_server: str | None = option(
        None,
        "Address of the tracker's server: https://… of wandb or mlflow, aim://HOST:PORT; none takes what "
        "WANDB_BASE_URL and MLFLOW_TRACKING_URI say, and else wandb's own, or --tracker_dir.",
        entries=TRAINING,
        metavar="ADDRESS",
    )
    tracker_offline: bool = option(
        False,
        "Have trackers keep everything in --tracker_dir and ask no server; `wandb sync` uploads it later.",
        entries=TRAINING,
    )
    tracker_wait: int = option(
        30,
        "Seconds that the end of a run waits for trackers to have everything; what is missing then is left out.",
        entries=TRAINING,
        metavar="SECONDS",
        at_least=0,
    )


def tracking_problems(run: RunConfig) -> Iterator[Problem]:
    """What is wrong with where trackers keep a run."""
    settings = run.tracking
    if settings.tracker_offline and settings.tracker_server is not None:
        reason, remedy = "asks a server, and --tracker_offline none", "leave one out"
        yield Problem("tracker_server", settings.tracker_server, reason, remedy, also=("tracker_offline",), clause=True)


def tracking_path_problems(run: RunConfig) -> Iterator[Problem]:
    """What is wrong with the folder of trackers, where the run has one that writes in it."""
    if run.kind == "benchmark" or not run.run.trackers:
        return
    folder = run.tracking.tracker_dir
    reason = files.why_not_writable(Path(folder))
    if reason is not None:
        yield Problem("tracker_dir", folder, reason, "give a folder that can be written")
