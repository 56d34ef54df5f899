"""Validation in the course of a run: the same batches each time, and their loss over all ranks by the present weights.

It is the one thing a run does with text that it does not learn from. A finished checkpoint is scored by
`evaluation.held_out`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from llama_dyt.boosters.boosted import Boosted, sum_over_ranks
from llama_dyt.config.run import RunConfig
from llama_dyt.core import ranks
from llama_dyt.core.errors import DataError
from llama_dyt.core.standing import Phase, inside
from llama_dyt.data.formats.sources import Source
from llama_dyt.data.loaders.step import Step
from llama_dyt.training.callbacks.callback import Callback, Training
from llama_dyt.training.plan import Plan, say
from llama_dyt.training.step import StepOutcome
from llama_dyt.training.trackers.tracker import Record
from llama_dyt.training.trackers.trackers import Trackers

_LARGEST_EXPONENT = 700.0  # exp of more is no float


@dataclass(frozen=True)
class Figures:
    """What came of one set.

    Attributes:
        loss: mean over all label tokens of all ranks, nats a token.
        num_tokens: how many those are.
    """

    loss: float
    num_tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, _LARGEST_EXPONENT))


@dataclass(frozen=True)
class HeldOutBatches:
    """The validation sets of a run, in this rank's memory: 16 bytes a token of its own rows, 32 with documents apart.

    Attributes:
        sets: name → global batches, of which this rank has its rows.
    """

    sets: Mapping[str, Sequence[Step]]

    def measure(self, boosted: Boosted, stop_asked: Callable[[], bool]) -> dict[str, Figures] | None:
        """The figures of every set; None when a rank was asked to stop meanwhile. Collective.

        Args:
            stop_asked: whether this rank was; looked at after every batch, and all ranks stop together.
        """
        figures = {}
        for name, steps in self.sets.items():
            total, count = 0.0, 0
            for step in steps:
                loss, stops = sum_over_ranks([boosted.evaluate(step), float(stop_asked())], boosted.device)
                if stops:
                    return None
                total += loss * step.num_label_tokens
                count += step.num_label_tokens
            figures[name] = Figures(total / count, count)
        return figures


class Validation(Callback):
    """Measures the sets every --validation_freq steps and at the end, and tells what they gave.

    A signal ends the run within a batch. A validation that was cut short leaves no record; the run that goes on from
    that checkpoint makes up for it, by the same weights, before its first step.
    """

    kept_as = "llama_dyt.validation"
    order = 70

    def __init__(self, run: RunConfig, batches: HeldOutBatches, trackers: Trackers) -> None:
        super().__init__(run)
        self._batches = batches
        self._trackers = trackers
        self._validated_step = 0
        self._owed_step: int | None = None

    def due(self, step: int) -> bool:
        return step % self.run.validation.validation_freq == 0

    def on_start(self, trainer: Training) -> None:
        self._validated_step = trainer.progress.step  # where a resumed run starts
        if self._owed_step == trainer.progress.step:
            self._validate(trainer)
            trainer.window.restart()

    def after_step(self, trainer: Training, outcome: StepOutcome) -> None:
        trainer.settle()
        self._validate(trainer)
        trainer.window.restart()

    def before_end(self, trainer: Training) -> None:
        if not trainer.stopping and self._validated_step != trainer.progress.step:
            self._validate(trainer)

    def state(self) -> dict[str, Any]:
        return {"owed_step": self._owed_step}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._owed_step = state["owed_step"]

    def _validate(self, trainer: Training) -> None:
        start, step = time.perf_counter(), trainer.progress.step
        self._owed_step = step
        if trainer.stopping:
            return
        with inside(Phase.VALIDATION):
            figures = self._batches.measure(trainer.boosted, stop_asked=lambda: trainer.stop.asked)
        if figures is None:
            trainer.stop_together()
            return
        self._validated_step, self._owed_step = step, None
        self._trackers.log_validation(validation_record(step, figures, time.perf_counter() - start))
        for name, found in figures.items():
            trainer.say(
                f"step {step}: validation loss {found.loss:.4f}, perplexity {found.perplexity:,.2f} on {name} "
                f"({found.num_tokens:,} tokens)"
            )


def validation_record(step: int, figures: Mapping[str, Figures], seconds: float) -> Record:
    """What trackers are told of a validation; every figure is a dict by the set's name."""
    return {
        "step": step,
        "validation_loss": {name: found.loss for name, found in figures.items()},
        "validation_perplexity": {name: found.perplexity for name, found in figures.items()},
        "validation_tokens": {name: found.num_tokens for name, found in figures.items()},
        "validation_seconds": seconds,
    }


def read_validation(
    plan: Plan, make_batches: Callable[[Source], AbstractContextManager[Iterator[Step]]]
) -> HeldOutBatches | None:
    """The first global batches of every validation set of a run, read once; None where it has none. All ranks call it.

    Args:
        make_batches: the loader of a source for this rank, one epoch long.

    Raises:
        DataError: what a set holds cannot be used.
    """
    settings, read = plan.run.validation, {}
    if not plan.validation:
        return None
    with ranks.busy("reading the validation sets"):
        for chosen in plan.validation:
            with make_batches(chosen.open(plan.read_options)) as batches:
                read[chosen.name] = list(islice(batches, settings.validation_batches))
            if not read[chosen.name]:
                raise DataError(f"validation set {chosen}: not one token to predict; give one with more text")
    for chosen in plan.validation:
        steps = read[chosen.name]
        count = sum(step.num_label_tokens for step in steps)
        say(
            plan,
            f"validation every {settings.validation_freq} steps on {chosen}: {len(steps)} "
            f"batch{'es' if len(steps) > 1 else ''}, {count:,} tokens",
        )
    return HeldOutBatches(read)
