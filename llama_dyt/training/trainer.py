"""The one training loop: pretraining, fine-tuning and the benchmark drive `Trainer.train_step`.

Read `fit` first: it is the whole story of a run after everything has been set up.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import torch
import torch.distributed as dist

from llama_dyt.boosters.boosted import Boosted, peak_memory_mb, summed_over_ranks
from llama_dyt.boosters.interface import NonFiniteGradientError, StepResult
from llama_dyt.boosters.reading import Reading
from llama_dyt.data.loader import Step
from llama_dyt.errors import TrainingError

from .checkpoint import CheckpointWriter
from .performance import Speedometer
from .randomness import rng_state
from .saturation import SaturationProbe
from .schedule import learning_rate_factor
from .tracking import Tracker
from .validation import Validation

PROBE_INTERVAL = 10
"""Alpha and saturation are looked at in every so many-th record: one scalar a site a step would drown TensorBoard."""


@dataclass
class Progress:
    """How far a run is; what a checkpoint keeps beside tensors.

    Attributes:
        step: optimizer steps done, skipped ones included.
        skipped_steps: fp16 steps that overflowed and moved nothing; they do not advance the schedule.
        tokens_seen: input tokens over all ranks.
        position: where the data goes on (see `data.loader`); None at the start.
    """

    step: int = 0
    skipped_steps: int = 0
    tokens_seen: int = 0
    position: dict[str, Any] | None = None


class Ending(StrEnum):
    """Why a run ended, in words for its summary."""

    FINISHED = "finished"
    OUT_OF_DATA = "finished (end of the data)"
    INTERRUPTED = "saved and stopped on a signal"


class StepOutcome:
    """One optimizer step: the global batch's mean token loss, and what the optimizer did.

    Its numbers may still be on their way from the device; asking for one waits until they are there.

    Args:
        step: its number, from 1.
        totals: over all ranks, (2,): the loss, and how many were asked to stop.
    """

    def __init__(self, step: int, lr: float, totals: torch.Tensor, result: StepResult) -> None:
        self.step = step
        self.lr = lr
        self.result = result
        norm = 0.0 if result.norm is None else result.norm
        if not isinstance(norm, torch.Tensor):
            norm = totals.new_full((), norm)
        self._reading = Reading(torch.cat([totals, norm.to(totals).reshape(1)]))

    @property
    def loss(self) -> float:
        return self._reading.values()[0]

    @property
    def stop_asked(self) -> bool:
        return self._reading.values()[1] > 0

    @property
    def norm_is_finite(self) -> bool:
        return math.isfinite(self._reading.values()[2])


@dataclass(frozen=True)
class Schedule:
    """The course of the learning rate; `lr_scheduler` in a checkpoint."""

    name: str
    peak_lr: float
    warmup_steps: int
    total_steps: int

    def lr(self, step: int) -> float:
        return self.peak_lr * learning_rate_factor(self.name, step, self.warmup_steps, self.total_steps)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Trainer:
    """Drives a boosted model over steps of data."""

    def __init__(
        self,
        boosted: Boosted,
        schedule: Schedule,
        speedometer: Speedometer,
        tracker: Tracker,
        writer: CheckpointWriter | None,
        progress: Progress,
        log_interval: int,
        save_interval: int | None,
        validation: Validation | None = None,
    ) -> None:
        self.boosted = boosted
        self.schedule = schedule
        self.speedometer = speedometer
        self.tracker = tracker
        self.writer = writer
        self.progress = progress
        self._log_interval = log_interval
        self._save_interval = save_interval
        self._validation = validation
        self._validated_step = progress.step
        self._saved_step = progress.step  # where a resumed run starts; a new one has nothing to save yet
        self._stop_signal = False  # this process was asked to end
        self._stopping = False  # any was, as all of them learned by a step's outcome
        self._unsettled: StepOutcome | None = None
        self.num_bad_lines = 0
        self.sources: dict[str, int] = {}

    # --- one step ------------------------------------------------------------------------------------------------

    def train_step(self, step: Step, probe: SaturationProbe | None = None) -> StepOutcome:
        """Forward, backward and update of one optimizer step.

        Where the booster runs ahead of the host, nothing here waits for the device: what the step gave is looked at by
        `settle`, which the next step calls once it has been started. Elsewhere it is looked at before the update.

        Raises:
            TrainingError: loss or gradient are not finite, of this step or of the one before; raised on every rank, and
                no weight was changed by that step.
        """
        lr = self.schedule.lr(self.progress.step - self.progress.skipped_steps)
        self.boosted.set_learning_rate(lr)
        with probe or nullcontext(), self.boosted.layers_as_written() if probe else nullcontext():
            share = self.boosted.forward_backward(step)
        totals = summed_over_ranks([share, float(self._stop_signal)], self.boosted.device)
        number = self.progress.step + 1
        unseen = self.boosted.runs_ahead
        if not unseen:
            self._require_finite("loss", float(totals[0]), number)
        try:
            result = self.boosted.optimizer_step(totals[0] if unseen else None)
        except NonFiniteGradientError as error:
            self._require_finite("gradient norm", error.args[0], number)
        outcome = StepOutcome(number, lr, totals, result)
        self.progress.step += 1
        self.progress.skipped_steps += result.skipped
        self.progress.tokens_seen += step.num_tokens
        self.progress.position = step.position
        self.num_bad_lines = step.num_bad_lines
        self.sources = step.sources
        for notice in step.notices:
            self.tracker.say(f"step {self.progress.step}: {notice}")
        self.settle()
        self._unsettled = outcome
        if not unseen:
            self.settle()
        return outcome

    def settle(self) -> None:
        """Look at the last step's outcome, if that has not been done: before logging, saving, validating and the end.

        Raises:
            TrainingError: its loss or gradient is not finite.
        """
        outcome, self._unsettled = self._unsettled, None
        if outcome is None:
            return
        self._require_finite("loss", outcome.loss, outcome.step)
        if not outcome.norm_is_finite:
            self._require_finite("gradient norm", outcome.result.grad_norm, outcome.step)
        self._stopping = self._stopping or outcome.stop_asked

    def _require_finite(self, what: str, value: float, step: int) -> None:
        if math.isfinite(value):
            return
        last = self.writer.last_path if self.writer else None
        remedy = f"resume from {last} with a lower --lr" if last else "lower --lr or use --mixed_precision bf16"
        left_out = self.boosted.runs_ahead  # the device did so; the host learns of it when the next step has begun
        when = "that step's update was left out" if left_out else "stopped before the weights were changed"
        raise TrainingError(f"{what} is {value} at step {step}: {when}; {remedy} (last checkpoint: {last or 'none'})")

    # --- the run -------------------------------------------------------------------------------------------------

    def fit(self, batches: Iterable[Step], max_steps: int) -> Ending:
        """Train until `max_steps` or the end of the data, logging and saving on the way; saves at the end.

        Returns:
            Why it ended.
        """
        steps = iter(batches)
        window = _Window()
        ending, opened = Ending.FINISHED, False
        with self._save_on_signal():
            while self.progress.step < max_steps:
                with window.waiting():
                    step = next(steps, None)
                if step is None:
                    ending = Ending.OUT_OF_DATA
                    break
                if not opened:
                    self.tracker.open()
                    opened = True
                record_due = (self.progress.step + 1) % self._log_interval == 0 or self.progress.step + 1 == max_steps
                probe_due = record_due and (self.progress.step // self._log_interval) % PROBE_INTERVAL == 0
                probe = SaturationProbe(self.boosted.module) if probe_due else None
                outcome = self.train_step(step, probe)
                window.tokens += step.num_tokens
                self.tracker.advance()
                if outcome.result.skipped:
                    self.tracker.say(
                        f"step {self.progress.step}: fp16 gradients overflowed at loss scale "
                        f"{outcome.result.loss_scale:g}, step skipped ({self.progress.skipped_steps} so far)"
                    )
                validation_due = self._validation and self.progress.step % self._validation.interval == 0
                save_due = self._save_interval and self.progress.step % self._save_interval == 0
                if record_due or validation_due or save_due:
                    self.settle()
                if record_due:
                    self.tracker.log(self._record(outcome, window, probe))
                    window = _Window()
                if self._stopping:
                    ending = Ending.INTERRUPTED
                    break
                if validation_due:
                    if not self.validate():
                        ending = Ending.INTERRUPTED
                        break
                    window = _Window()
                if save_due:
                    self.save()
                    window = _Window()  # a save is no training time
            self.settle()
            last_due = self._validation and self._validated_step != self.progress.step
            if last_due and ending is not Ending.INTERRUPTED and not self.validate():
                ending = Ending.INTERRUPTED
        if self.writer and self._saved_step != self.progress.step:
            self.save()
        return ending

    def validate(self) -> bool:
        """Measure the validation sets and log what they gave. All ranks call it.

        Returns:
            False if a signal asked for the end meanwhile; then there is nothing to log.
        """
        start = time.perf_counter()
        figures = self._validation.measure(self.boosted, stop_asked=lambda: self._stop_signal)
        if figures is None:
            return False
        self._validated_step = self.progress.step
        self.tracker.log_validation(self.progress.step, figures, time.perf_counter() - start)
        return True

    def save(self) -> None:
        """Write a checkpoint of the present step; all ranks call it.

        Raises:
            TrainingError: the step was no good.
        """
        self.settle()
        generators: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(generators, rng_state())
        grid = self.boosted.grid
        trainer_state = {
            **asdict(self.progress),
            "world_size": dist.get_world_size(),
            "data_parallel_size": grid.dp_size,
            "tensor_parallel_size": grid.tp_size,
            "pipeline_parallel_size": grid.pp_size,
            "sequence_parallel_size": grid.sp_size,
            "plugin": self.boosted.run.booster.plugin,
            "mixed_precision": self.boosted.run.booster.mixed_precision,
            "rng": generators,
        }
        optimizer = {"steps": self.boosted.state.optimizer_steps(), "scaler": self.boosted.scaler.state_dict()}
        path = self.writer.save(self.progress.step, trainer_state, self.schedule.to_json(), optimizer)
        self._saved_step = self.progress.step
        self.tracker.say(f"saved {path}")

    def _record(self, outcome: StepOutcome, window: _Window, probe: SaturationProbe | None) -> dict[str, Any]:
        """One line of metrics.jsonl."""
        seconds = window.seconds()
        speed = self.speedometer.speed(window.tokens, seconds)
        record: dict[str, Any] = {
            "step": self.progress.step,
            "loss": outcome.loss,
            "lr": outcome.lr,
            "grad_norm": outcome.result.grad_norm,
            "tokens_seen": self.progress.tokens_seen,
            "tokens_per_second": speed.tokens_per_second,
            "tflops_per_device": speed.tflops_per_device,
            "hardware_tflops_per_device": speed.hardware_tflops_per_device,
            "mfu": speed.mfu,
            "max_memory_mb": peak_memory_mb(),
            "data_wait_fraction": window.waited_seconds / seconds,
            "loss_scale": outcome.result.loss_scale,
            "skipped_steps": self.progress.skipped_steps,
            "bad_lines": self.num_bad_lines,
        }
        if self.sources:
            record["sources"] = self.sources
        if probe is not None:
            record["alpha"], record["saturation"] = self._over_stages(*probe.values())
        return record

    def _over_stages(self, *site_values: dict[str, float]) -> list[dict[str, float]]:
        """Join the per-site values of all pipeline stages: each holds its own sites."""
        group = self.boosted.grid.pp_group
        if group is None:
            return list(site_values)
        stages: list[Any] = [None] * self.boosted.grid.pp_size
        dist.all_gather_object(stages, site_values, group=group)
        return [{k: v for stage in stages for k, v in stage[i].items()} for i in range(len(site_values))]

    @contextmanager
    def _save_on_signal(self) -> Iterator[None]:
        """Let SIGTERM (Slurm's pre-emption, torchrun's shutdown) and Ctrl-C end the run after the step, with a save.

        A second signal acts at once, as without this.
        """

        def ask(number: int, frame: Any) -> None:
            self._stop_signal = True
            signal.signal(number, previous[number])

        numbers = (signal.SIGTERM, signal.SIGINT)
        previous = {number: signal.signal(number, ask) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class _Window:
    """Time and tokens since the last record."""

    def __init__(self) -> None:
        self.tokens = 0
        self.waited_seconds = 0.0
        self._start = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self.waited_seconds += time.perf_counter() - start

    def seconds(self) -> float:
        return max(time.perf_counter() - self._start, 1e-9)
