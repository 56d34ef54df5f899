"""Checksums of weights over the ranks that must hold the same, every so many steps."""

from __future__ import annotations

from llama_dyt.config.run import RunConfig
from llama_dyt.core.errors import TrainingError
from llama_dyt.training.callbacks.callback import Callback, Training
from llama_dyt.training.step import StepOutcome


class Checksums(Callback):
    """Ends the run where ranks differ, every --checksum_interval steps and before each snapshot; a save asks itself."""

    order = 78

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        intervals = (run.health.checksum_interval, run.snapshots.snapshot_interval)
        self._intervals = [interval for interval in intervals if interval]

    def due(self, step: int) -> bool:
        return any(step % interval == 0 for interval in self._intervals)

    def on_start(self, trainer: Training) -> None:
        if not trainer.health.copies.any_shared():
            raise TrainingError(
                f"--checksum_interval {self.run.health.checksum_interval}: under --plugin {self.run.booster.plugin} "
                "each weight is on one rank alone, so there is nothing to compare; leave it out"
            )

    def after_step(self, trainer: Training, outcome: StepOutcome) -> None:
        trainer.settle()
        trainer.health.require_equal_copies(outcome.step)
