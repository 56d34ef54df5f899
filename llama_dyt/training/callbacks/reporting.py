"""What is told of a run's course as it goes: steps done and skipped, what happened to the data, that it was asked to
end."""

from __future__ import annotations

from llama_dyt.config.run import RunConfig
from llama_dyt.training.callbacks.callback import Callback, Training
from llama_dyt.training.step import StepOutcome
from llama_dyt.training.trackers.trackers import Trackers


class Reporting(Callback):
    """Opens the trackers with the first batch, and tells them of each step."""

    order = 10

    def __init__(self, run: RunConfig, trackers: Trackers, resumed: str | None = None) -> None:
        """`resumed`: what the run goes on from, in words, where there is more to say than the step."""
        super().__init__(run)
        self._trackers = trackers
        self._resumed = resumed

    def on_start(self, trainer: Training) -> None:
        self._trackers.open()
        step = trainer.progress.step
        if step:
            self._trackers.log_event(step, "resumed", f"goes on from {self._resumed or f'step {step}'}")

    def after_step(self, trainer: Training, outcome: StepOutcome) -> None:
        for notice in trainer.batch.notices:
            trainer.say(f"step {outcome.step}: {notice}")
            self._trackers.log_event(outcome.step, "data", str(notice))
        self._trackers.advance()
        if outcome.result.skipped:
            what = f"fp16 gradients overflowed at loss scale {outcome.result.loss_scale:g}, step skipped"
            trainer.say(f"step {outcome.step}: {what} ({trainer.progress.skipped_steps} so far)")
            self._trackers.log_event(outcome.step, "skipped", what)

        self._tell_of_steps(trainer)

    def before_end(self, trainer: Training) -> None:
        self._tell_of_steps(trainer)
        if trainer.stopping:
            trainer.say(f"step {trainer.progress.step}: asked to end by a signal")
            self._trackers.log_event(trainer.progress.step, "stopped", "asked to end by a signal")

    def _tell_of_steps(self, trainer: Training) -> None:
        """Of those that were no good, which may be known a step late."""
        for step, kind, what in trainer.health.news():
            trainer.say(f"step {step}: {what}")
            self._trackers.log_event(step, kind, what)
