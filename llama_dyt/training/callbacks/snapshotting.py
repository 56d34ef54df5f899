"""Snapshots in the course of a run: every so many steps, and gone with its good end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from llama_dyt.config.run import RunConfig
from llama_dyt.training.callbacks.callback import Callback, Training
from llama_dyt.training.callbacks.counters import Counters
from llama_dyt.training.checkpoint.generators import rng_state
from llama_dyt.training.progress import Ending
from llama_dyt.training.snapshots.taking import SnapshotTaker
from llama_dyt.training.step import StepOutcome


class Snapshotting(Callback):
    """Takes one every --snapshot_interval steps."""

    order = 90  # after a save of the same step

    def __init__(self, run: RunConfig, taker: SnapshotTaker, counters: Counters) -> None:
        super().__init__(run)
        self._taker = taker
        self._counters = counters
        self._blocked_seconds: float | None = None  # of snapshots that no record has told of

    def on_start(self, trainer: Training) -> None:
        self._taker.prepare(trainer.boosted)

    def after_step(self, trainer: Training, outcome: StepOutcome) -> None:
        self._taker.note(outcome.step)
        if outcome.step % self.run.snapshots.snapshot_interval:
            return
        trainer.settle()
        if trainer.stopping or trainer.going_back:  # a checkpoint follows, or the step is not kept
            return
        began = time.perf_counter()
        self._taker.take(trainer.boosted, outcome.step, self._counters.of(trainer), rng_state())
        self._blocked_seconds = time.perf_counter() - began + (self._blocked_seconds or 0.0)
        trainer.window.restart()

    def record(self, trainer: Training, outcome: StepOutcome) -> Mapping[str, Any]:
        blocked, self._blocked_seconds = self._blocked_seconds, None
        return {} if blocked is None else {"snapshot_blocked_seconds": blocked}

    def before_end(self, trainer: Training) -> None:
        self._taker.finish()

    def on_end(self, trainer: Training, ending: Ending) -> None:
        self._taker.remove()
