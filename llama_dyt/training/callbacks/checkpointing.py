"""Checkpoints in the course of a run: every so many steps, and at its end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from llama_dyt.config.run import RunConfig
from llama_dyt.core import ranks
from llama_dyt.core.standing import Phase, inside
from llama_dyt.core.store import Location
from llama_dyt.training.callbacks.callback import Callback, Training
from llama_dyt.training.callbacks.counters import Counters
from llama_dyt.training.checkpoint import forward_check
from llama_dyt.training.checkpoint.generators import rng_state
from llama_dyt.training.checkpoint.writer import CheckpointWriter
from llama_dyt.training.step import StepOutcome
from llama_dyt.training.trackers.trackers import Trackers


class Checkpointing(Callback):
    """Saves every --save_interval steps, and after the last one. Asynchronously, a checkpoint becomes whole during
    later steps: all ranks learn of that, or of a failure, after the same one.

    Attributes:
        writer: of the run's checkpoints.
    """

    order = 80

    def __init__(
        self,
        run: RunConfig,
        writer: CheckpointWriter,
        trackers: Trackers | None = None,
        batch: dict[str, int] | None = None,
    ) -> None:
        """`batch`: how a step's sequences came about, of `plan.global_batch`."""
        super().__init__(run)
        self.writer = writer
        self._trackers = trackers or Trackers()
        self._counters = Counters(run, self._trackers, batch)
        self._saved_step = 0
        self._writing_step: int | None = None  # of a checkpoint that is not whole yet
        self._blocked_seconds: float | None = None  # of saves that no record has told of

    def due(self, step: int) -> bool:
        return self._is_time(step) or self._writing_step is not None

    def _is_time(self, step: int) -> bool:
        return step % self.run.run.save_interval == 0

    def on_start(self, trainer: Training) -> None:
        self._saved_step = trainer.progress.step  # where a resumed run starts; a new one has nothing to save yet
        self.writer.start()

    def after_step(self, trainer: Training, outcome: StepOutcome) -> None:
        self._conclude(trainer, wait=False)
        step = outcome.step
        if not self._is_time(step):
            return
        trainer.settle()
        if trainer.stopping or trainer.going_back:
            return
        if self._writing_step is not None and self.run.run.async_save_busy == "skip":
            what = f"not saved: the checkpoint of step {self._writing_step} is still being written"
            trainer.say(f"step {step}: {what} (--async_save_busy skip)")
            self._trackers.log_event(step, "skipped", what)
            return
        self.save(trainer)
        trainer.learn_of_signals()  # a save takes long enough for one, and a step more would ask for another
        trainer.window.restart()

    def record(self, trainer: Training, outcome: StepOutcome) -> Mapping[str, Any]:
        blocked, self._blocked_seconds = self._blocked_seconds, None
        return {} if blocked is None else {"save_blocked_seconds": blocked}

    @inside(Phase.SAVE)
    def before_end(self, trainer: Training) -> None:
        if self._saved_step != trainer.progress.step:
            self.save(trainer)
        self._conclude(trainer, wait=True)

    def conclude(self, trainer: Training) -> None:
        """Wait for a checkpoint that is still being written. Collective."""
        self._conclude(trainer, wait=True)

    def went_back(self, step: int) -> None:
        """The run is as this step's checkpoint again."""
        self._saved_step = step

    @inside(Phase.SAVE)
    def save(self, trainer: Training) -> Location:
        """Write a checkpoint of the present step, or begin to where that is asynchronous; all ranks call it.

        One that is still being written is waited for.

        Raises:
            TrainingError: the step was no good, a weight or moment is not finite, or ranks do not hold the same
                (--checksum_interval); nothing is written then.
        """
        start = time.perf_counter()
        self._conclude(trainer, wait=True)
        trainer.settle()
        if self.run.health.checksum_interval is not None:
            trainer.health.require_equal_copies(trainer.progress.step)
        if not self.writer.looks_for_finite:
            trainer.health.require_finite_state(trainer.progress.step)
        step = trainer.progress.step
        generators = ranks.gather(rng_state(), "saving the random generators")
        counters = self._counters.of(trainer)
        trainer_state, optimizer = {**counters["trainer_state"], "rng": generators}, counters["optimizer_scalars"]
        beside = forward_check.to_store(trainer.boosted)
        path = self.writer.save(step, trainer_state, counters["schedule"], optimizer, beside)
        self._saved_step = self._writing_step = step
        self._last_blocked = 0.0
        self._blocked(time.perf_counter() - start)
        trainer.boosted.before_change(self._wait_for_copies)
        self._conclude(trainer, wait=False)
        return path

    def _wait_for_copies(self) -> None:
        start = time.perf_counter()
        self.writer.before_change()
        self._blocked(time.perf_counter() - start)

    def _blocked(self, seconds: float) -> None:
        self._last_blocked += seconds
        self._blocked_seconds = seconds + (self._blocked_seconds or 0.0)

    def _conclude(self, trainer: Training, wait: bool) -> None:
        """Tell of a checkpoint that has become whole. Collective."""
        step, path = self._writing_step, self.writer.conclude(wait) if self._writing_step is not None else None
        if path is None:
            return
        self._writing_step = None
        seconds = trainer.save_seconds = self.writer.seconds
        waited = f", {self._last_blocked:.1f} s of it without training" if self.run.run.async_save else ""
        trainer.say(f"saved {path} in {seconds:.1f} s{waited}")
        self._trackers.log_event(step, "saved", f"checkpoint in {seconds:.1f} s{waited}")
        trainer.callbacks.on_save(trainer, path)
        self._trackers.saved(step)
