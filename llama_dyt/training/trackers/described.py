"""What servers of trackers are told of a run beside its numbers: its name, and its settings without secrets."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from llama_dyt.config.run import RunConfig
from llama_dyt.core.problem import Problem
from llama_dyt.core.secrets import redacted
from llama_dyt.training.trackers.tracker import Tracked


def run_name(tracked: Tracked) -> str:
    """--tracker_run_name, or the last part of the --save_dir."""
    name = tracked.run.tracking.tracker_run_name
    return name or os.path.basename(os.path.abspath(str(tracked.save_dir)))


def described(tracked: Tracked) -> dict[str, Any]:
    """Every flag of the run by name, without secrets, and what the run is in words."""
    flags = redacted(tracked.run.flags())
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in flags.items()}
    return {**plain, "run": tracked.title, "total_steps": tracked.total_steps, "resumed_from_step": tracked.start_step}


def not_installed(run: RunConfig, name: str, package: str) -> Problem | None:
    """That a tracker's package is missing, and what to do."""
    if importlib.util.find_spec(name) is not None:
        return None
    reason, remedy = f"the package {name} is not installed", f"pip install {package} (requirements-trackers.txt)"
    return Problem("tracker", name, reason, remedy, local=True)
