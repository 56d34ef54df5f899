"""How a run stands, in `status.json`, and whether its saves fit between a signal and the kill that follows it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from llama_dyt.config.run import RunConfig
from llama_dyt.core import ranks
from llama_dyt.core.errors import TrainingError
from llama_dyt.core.store import Location, write_json
from llama_dyt.training.callbacks.callback import Callback, Training
from llama_dyt.training.checkpoint.marker import step_of
from llama_dyt.training.signals import INTERRUPTED_STATUS

STATUS_FILE = "status.json"

_TORCHRUN_SECONDS = 30  # torchrun's own default
_SLURM_SECONDS = 30  # Slurm's own KillWait


class Status(Callback):
    """Says after each save how the run stands, and whether the first save of a new one fits.

    Args:
        run: of which it is told.
        save_dir: where `status.json` is.
        launcher: of `ProcessEnvironment`; it sets how long a signal leaves.
        writes: whether this process writes; the first does.
    """

    order = 20

    def __init__(self, run: RunConfig, save_dir: Location, launcher: str, writes: bool) -> None:
        super().__init__(run)
        self._save_dir = save_dir
        self._respite = respite(launcher, grace=run.run.save_grace)
        self._writes = writes
        self._save_seconds = last_save_seconds(save_dir)

    def in_words(self) -> str | None:
        """Whether a save fits, before the run; None where none was timed yet."""
        return None if self._save_seconds is None else self._respite.judge(self._save_seconds)

    def on_save(self, trainer: Training, path: Location) -> None:
        seconds = trainer.save_seconds
        if self._save_seconds is None and not self._respite.is_enough(seconds):
            trainer.say(self._respite.judge(seconds))
        self._save_seconds = seconds
        self.write("running", trainer.progress.step, trainer.last_step)

    def leave_word(self, last_saved: Location | None, total_steps: int) -> None:
        """Where the process is ending without the save that a signal asked for: it is to be started again as well."""
        if ranks.ending_status() == INTERRUPTED_STATUS:
            step = step_of(last_saved) if last_saved is not None else 0
            self.write("stopped", step, total_steps)

    def write(self, state: str, step: int, total_steps: int) -> None:
        """Write the file: "running", "stopped" (saved and stopped on a signal: to be started again) or "finished"."""
        if self._writes:
            write_status(self._save_dir, state, step, total_steps, self._save_seconds)


@dataclass(frozen=True)
class Respite:
    """How long a run has between the signal that asks for its end and the one that nothing survives.

    Attributes:
        seconds: None where nobody is known to send the second.
        source: who sets it, and so where it can be changed.
    """

    seconds: float | None
    source: str = ""

    def is_enough(self, save_seconds: float) -> bool:
        """Whether a save fits, with half of it to spare for the step before it and a busy file system."""
        return self.seconds is None or 1.5 * save_seconds <= self.seconds

    def judge(self, save_seconds: float) -> str:
        """What is said of a save that took so long: a warning where it does not fit."""
        took = f"a save takes {save_seconds:,.1f} s"
        if self.seconds is None:
            return took
        if self.is_enough(save_seconds):
            return f"{took}, and a signal leaves {self.seconds:g} s ({self.source})"
        return (
            f"warning: {took}, and a signal leaves {self.seconds:g} s ({self.source}): what it asks for may be killed "
            f"before it is written; allow {2 * save_seconds:,.0f} s or more (docs/training.md, Stopping)"
        )


def respite(launcher: str, env: Mapping[str, str] | None = None, grace: float | None = None) -> Respite:
    """What the launcher allows, by its variables.

    Args:
        launcher: of `ProcessEnvironment`.
        env: the environment; the process's own when None.
        grace: of --save_grace.
    """
    env = os.environ if env is None else env
    allowed = [] if grace is None else [Respite(grace, "--save_grace")]
    if launcher == "torchrun":
        name = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
        allowed.append(Respite(_number(env.get(name), _TORCHRUN_SECONDS), f"torchrun's {name}"))
    if "SLURM_JOB_ID" in env:
        asked = _number(env.get("LLAMA_DYT_STOP_SECONDS"), None)
        if asked is None:
            allowed.append(Respite(_SLURM_SECONDS, "Slurm's KillWait; sbatch --signal asks for the signal earlier"))
        else:
            allowed.append(Respite(asked, "LLAMA_DYT_STOP_SECONDS, as sbatch --signal asks for it"))
    return min(allowed, key=lambda one: one.seconds, default=Respite(None))


def _number(text: str | None, default: float | None) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return default


def write_status(save_dir: Location, state: str, step: int, total_steps: int, save_seconds: float | None) -> None:
    """Say how the run stands, for scripts and the next start: torchrun ends with 1 whatever its workers end with.

    A folder that is not there, of a run that did nothing, is not made.

    Args:
        state: "running", "stopped" (saved and stopped on a signal: to be started again) or "finished".
        save_seconds: how long the last save took; None before the first.

    Raises:
        TrainingError: it cannot be written.
    """
    status = {
        "state": state,
        "step": step,
        "total_steps": total_steps,
        "save_seconds": save_seconds,
        "time": datetime.now().astimezone().isoformat(),
    }
    if not save_dir.is_dir():
        return
    try:
        write_json(save_dir / STATUS_FILE, status)
    except OSError as error:
        raise TrainingError(
            f"could not write {save_dir / STATUS_FILE} ({error.strerror or error}); free space or take another "
            "--save_dir, and resume with --load auto"
        ) from error


def last_save_seconds(save_dir: Location) -> float | None:
    """How long the last save into this folder took; None where that is not known."""
    try:
        return json.loads((save_dir / STATUS_FILE).read_text(encoding="utf-8"))["save_seconds"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
