"""The seam of what a run does beside training: every so many steps, when it saves, when it ends.

Ours are the other files of this folder; `Session` puts them together. A user's is a class that a module given to
`--import` registers, `CALLBACKS.register(Mine)`, and that `--callback` turns on: every run makes one object of it for
each process it works in.

The order of a step, with the `order` of who does it:

    before_step     20 looks begin (`Saturation`, `SlowRanks`)   50 users'
    after_step      10 told (`Reporting`)   50 users'   60 record   70 validation   78 checksums   80 checkpoint

and of the end: `before_end` has the last validation and the last save, `on_end` what follows them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from llama_dyt.config.run import RunConfig
from llama_dyt.core.errors import TrainingError, in_one_line, raised_at
from llama_dyt.core.registry import Registry
from llama_dyt.core.store import Location

if TYPE_CHECKING:
    from llama_dyt.boosters.boosted import Boosted
    from llama_dyt.data.loaders.step import Step
    from llama_dyt.training.health.finite import Health
    from llama_dyt.training.measurement.window import Window
    from llama_dyt.training.progress import Ending, Progress
    from llama_dyt.training.schedule import LearningRateSchedule
    from llama_dyt.training.signals import StopRequest
    from llama_dyt.training.step import StepOutcome


class Training(Protocol):
    """What a callback is given: the run as it goes (`training.loop.Trainer`).

    Attributes:
        boosted: model and optimizer; `boosted.module` is the HuggingFace model, its parameters perhaps cut over ranks.
        progress: steps done and tokens seen.
        batch: this rank's part of what the present step learns from.
        last_step: the step that the run ends with, if the data lasts.
        stopping: some rank was asked to end, and all know: the run saves and ends after this step.
        going_back: the loss has a spike that the run goes back from after this step (--rollback_on_spike).
        window: time and tokens since the last record; `window.restart()` after what is no training time.
        save_seconds: how long the last save took.
        schedule, health, stop, callbacks: as of the Trainer; for ours.
    """

    boosted: Boosted
    progress: Progress
    batch: Step | None
    last_step: int
    stopping: bool
    going_back: bool
    window: Window
    save_seconds: float
    schedule: LearningRateSchedule
    health: Health
    stop: StopRequest
    callbacks: Callbacks

    def say(self, message: str) -> None:
        """Print a line; on the first rank alone, and beside the progress bar."""

    def settle(self) -> None:
        """Have the last step looked at: one that is no good ends the run here. Before its numbers are relied on."""

    def stop_together(self) -> None:
        """End after this step as a signal does: saved, with the status of a run that is to be gone on with. All ranks
        call it, in the same step."""

    def learn_of_signals(self) -> None:
        """Have `stopping` say what became of this process and all others meanwhile; all ranks call it."""

    def save(self) -> Location:
        """Write a checkpoint now; all ranks call it."""


class Callback:
    """What is not overridden does nothing.

    Attributes:
        name: by which `--callback` asks for it; ours have none.
        settings: a dataclass of flags of its own, or None; a run has them as `run.NAME`.
        collective: it talks between ranks: it works in every process, and what `due` says follows from the step alone.
        every_rank: it works in every process though it does not talk; otherwise only the first has it.
        order: its place among the callbacks of a run, least first; those of one order as they were asked for. `on_end`
            goes the other way.
    """

    name: str = ""
    settings: type | None = None
    collective: bool = False
    every_rank: bool = False
    order: int = 50

    def __init__(self, run: RunConfig) -> None:
        self.run = run

    @property
    def kept_as(self) -> str:
        """By which its `state` stands in a checkpoint; empty: nothing of it is kept."""
        return self.name

    def due(self, step: int) -> bool:
        """Whether `before_step` and `after_step` are called for this step, counted from 1."""
        return True

    def on_start(self, trainer: Training) -> None:
        """The first batch is there; `trainer.progress.step` steps were done by the run that this one resumes."""

    def before_step(self, trainer: Training, step: int) -> None:
        """The step is about to begin."""

    def after_step(self, trainer: Training, outcome: StepOutcome) -> None:
        """A step is done. Asking the outcome for a number waits for the device; one not finite ends the run later."""

    def record(self, trainer: Training, outcome: StepOutcome) -> Mapping[str, Any]:
        """What it adds to the record of a step that is logged: numbers, or a dict of numbers by name; what the first
        rank gives is kept. Asked of every callback, due or not, after their `after_step`."""
        return {}

    def on_save(self, trainer: Training, path: Location) -> None:
        """A checkpoint is complete at this path."""

    def before_end(self, trainer: Training) -> None:
        """No step follows; what is still missing is done now."""

    def on_end(self, trainer: Training, ending: Ending) -> None:
        """The loop has ended, and not by an error; the last checkpoint is written."""

    def state(self) -> dict[str, Any]:
        """What a resumed run is to know, as JSON can hold it; that of the first rank is kept."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, on every rank that has the callback; called before `on_start`."""


CALLBACKS: Registry[type[Callback]] = Registry("callback", None, "CALLBACK", "callback")


def asked_for(run: RunConfig, first: bool) -> list[Callback]:
    """The callbacks of `--callback` that work in this process.

    Args:
        first: this is the first rank.

    Raises:
        TrainingError: one cannot be made; it is named.
    """
    here = []
    for name in run.run.callbacks:
        kind = CALLBACKS.get(name)
        if first or kind.collective or kind.every_rank:
            with _named(name, "made"):
                here.append(kind(run))
    return here


class Callbacks:
    """Those of a run that work in this process, each called when it is due, in their order.

    Raises (every method): TrainingError, with the name of a user's callback that failed, which ends the run on all
    ranks; what one of ours raises is for the person who reads it as it is.
    """

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self._all = sorted(callbacks, key=lambda callback: callback.order)
        self._last_first = sorted(callbacks, key=lambda callback: -callback.order)
        # A small model's step is short: those that do nothing then are not asked.
        self._before_step = [one for one in self._all if type(one).before_step is not Callback.before_step]
        self._after_step = [one for one in self._all if type(one).after_step is not Callback.after_step]

    def __iter__(self) -> Iterator[Callback]:
        return iter(self._all)

    def load_state(self, states: Mapping[str, Any]) -> None:
        """Give each what it had kept in a checkpoint; one that was not there then begins anew."""
        for callback in self._all:
            if callback.kept_as in states:
                with _named(callback.name, "load_state"):
                    callback.load_state(states[callback.kept_as])

    def state(self) -> dict[str, Any]:
        """Name → what is to be kept."""
        kept = {}
        for callback in self._all:
            if callback.kept_as:
                with _named(callback.name, "state"):
                    kept[callback.kept_as] = callback.state()
        return kept

    def on_start(self, trainer: Training) -> None:
        for callback in self._all:
            with _named(callback.name, "on_start"):
                callback.on_start(trainer)

    def before_step(self, trainer: Training, step: int) -> None:
        for callback in self._before_step:
            try:
                if callback.due(step):
                    callback.before_step(trainer, step)
            except Exception as error:
                _raise_named(error, callback.name, "before_step", step)

    def after_step(self, trainer: Training, outcome: StepOutcome) -> None:
        for callback in self._after_step:
            try:
                if callback.due(outcome.step):
                    callback.after_step(trainer, outcome)
            except Exception as error:
                _raise_named(error, callback.name, "after_step", outcome.step)

    def record(self, trainer: Training, outcome: StepOutcome, record: dict[str, Any]) -> None:
        """Add to a record what each has for it; a name that is there already is an error."""
        for callback in self._all:
            with _named(callback.name, "record", outcome.step):
                added = callback.record(trainer, outcome)
                for key in added:
                    if key in record:
                        raise ValueError(f"a record has {key!r} already; give yours another name")
                if callback.name:
                    json.dumps(added)  # what cannot be written is told here, where it comes from
                record.update(added)

    def on_save(self, trainer: Training, path: Location) -> None:
        for callback in self._all:
            with _named(callback.name, "on_save", trainer.progress.step):
                callback.on_save(trainer, path)

    def before_end(self, trainer: Training) -> None:
        for callback in self._all:
            with _named(callback.name, "before_end"):
                callback.before_end(trainer)

    def on_end(self, trainer: Training, ending: Ending) -> None:
        for callback in self._last_first:
            with _named(callback.name, "on_end"):
                callback.on_end(trainer, ending)


@contextmanager
def _named(name: str, where: str, step: int | None = None) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        _raise_named(error, name, where, step)


def _raise_named(error: Exception, name: str, where: str, step: int | None) -> NoReturn:
    if not name:
        raise error
    when = f" at step {step}" if step is not None else ""
    raise TrainingError(
        f"--callback {name} failed in {where}{when}: {in_one_line(error)}; mend it ({raised_at(error)}), or "
        "leave it out and resume with --load auto"
    ) from error
