"""The one training loop. Read `fit` first: it is the whole story of a run after everything has been set up.

What is done beside training (records, validation, checkpoints, a user's own) is done by callbacks, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from llama_dyt.boosters.boosted import Boosted
from llama_dyt.core.standing import Phase, enter, in_step
from llama_dyt.core.store import Location
from llama_dyt.data.loaders.step import Step
from llama_dyt.training.callbacks.callback import Callbacks
from llama_dyt.training.callbacks.checkpointing import Checkpointing
from llama_dyt.training.health.finite import Health
from llama_dyt.training.health.rollback import Rollback
from llama_dyt.training.measurement.window import Window
from llama_dyt.training.progress import Ending, Progress
from llama_dyt.training.schedule import LearningRateSchedule
from llama_dyt.training.signals import StopRequest, wait_for_data
from llama_dyt.training.step import StepOutcome, StepRunner


class Trainer:
    """Drives a boosted model over batches.

    Attributes:
        boosted, schedule, progress: the run.
        callbacks: what is done beside training, in order.
        checkpointing: the one of them that saves; None where nothing is kept (the benchmark).
        stop: whether this process was asked to end.
        health: what ends a run that no longer learns.
        window: the stretch that the next record is of.
        rollback: what goes back to a checkpoint where the loss has a spike; None: nothing does.
        batch: this rank's part of what the present step learns from, after a step that of the last one; None before the
            first.
        last_step: the step that the run ends with, if the data lasts.
        save_seconds: how long the last save took.
        say: prints a line, on the first rank alone, beside the progress bar.
    """

    def __init__(
        self,
        boosted: Boosted,
        schedule: LearningRateSchedule,
        progress: Progress,
        callbacks: Callbacks,
        checkpointing: Checkpointing | None = None,
        stop: StopRequest | None = None,
        say: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.boosted = boosted
        self.schedule = schedule
        self.progress = progress
        self.callbacks = callbacks
        self.checkpointing = checkpointing
        self.stop = stop or StopRequest()
        self.say = say
        self.health = Health(boosted, progress, checkpointing.writer if checkpointing else None)
        self.window = Window()
        self.batch: Step | None = None
        self.last_step = 0
        self.save_seconds = 0.0
        self.rollback: Rollback | None = None
        self._steps = StepRunner(boosted, schedule, progress, self.health, self.stop)

    def fit(
        self, batches: Iterable[Step], max_steps: int, ready: Callable[[float], bool] = lambda seconds: True
    ) -> Ending:
        """Train until `max_steps` or the end of the data; all ranks call it.

        A signal ends it after the step it came in, or after a validation's batch, or where all ranks wait for data; in
        the last step, all is done and only the last validation is left out.

        Args:
            ready: whether the next batch is there in so many seconds, and so can be taken without a wait.

        Returns:
            Why it ended.
        """
        self.last_step = max_steps
        steps = iter(batches)
        started, ending = False, Ending.FINISHED
        self.window.restart()
        with self.stop.listening():
            while self.progress.step < max_steps:
                in_step(self.progress.step + 1)
                enter(Phase.DATA)
                with self.window.waiting():
                    if not wait_for_data(ready, self.stop, f"step {self.progress.step}"):
                        self.stop_together()
                        ending = Ending.INTERRUPTED
                        break
                    batch = next(steps, None)
                if batch is None:
                    ending = Ending.OUT_OF_DATA
                    break
                self.batch = batch
                enter(Phase.CALLBACKS)
                if not started:  # data that cannot be read leaves nothing behind
                    self.callbacks.on_start(self)
                    started = True
                self.callbacks.before_step(self, self.progress.step + 1)
                with self.window.stepping(1):
                    outcome = self.train_step(batch)
                self.stop.has_steps = True
                enter(Phase.CALLBACKS)
                self.window.tokens += batch.num_tokens
                self.callbacks.after_step(self, outcome)
                if self.going_back:
                    self.health.spiked = False
                    self.rollback.go_back(self)
                if self.stopping and self.progress.step < max_steps:
                    ending = Ending.INTERRUPTED
                    break
            enter(Phase.END)
            self.settle()
            if started:
                self.callbacks.before_end(self)
                self.stop.conclude()
                self.callbacks.on_end(self, ending)
        return ending

    def train_step(self, batch: Step) -> StepOutcome:
        """One optimizer step; see `StepRunner.train_step`."""
        return self._steps.train_step(batch)

    def settle(self) -> None:
        """Have looked at the last step's outcome: a loss that is not finite ends the run here at the latest."""
        with self.window.stepping():
            self._steps.settle()

    @property
    def going_back(self) -> bool:
        """Whether the loss has a spike that the run is to go back from, as all ranks know."""
        return self.rollback is not None and self.health.spiked

    @property
    def stopping(self) -> bool:
        """Whether some rank was asked to end, as all ranks have learned."""
        return self._steps.stopping

    def stop_together(self) -> None:
        """End after this step, saved; all ranks call it, in the same step."""
        self._steps.stopping = True

    def learn_of_signals(self) -> None:
        """Have every rank know whether any was asked to end, after what takes long. Collective."""
        self._steps.learn_of_signals()

    def save(self) -> Location:
        """Write a checkpoint of the present step and return its path; all ranks call it.

        Raises:
            TrainingError: the step was no good, or a weight or moment is not finite; nothing is written then.
        """
        return self.checkpointing.save(self)
