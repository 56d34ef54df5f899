"""A record of metrics every so many steps: how the run learns, and how fast it goes."""

from __future__ import annotations

import math
from typing import Any

from llama_dyt.boosters.boosted import peak_memory_mb
from llama_dyt.config.run import RunConfig
from llama_dyt.training.callbacks.callback import Callback, Training
from llama_dyt.training.measurement.performance import Speedometer
from llama_dyt.training.step import StepOutcome
from llama_dyt.training.trackers.trackers import Trackers


def is_logged(run: RunConfig, step: int, last_step: int) -> bool:
    """Whether a step has a record: every --log_interval-th, and the last one."""
    return step % run.run.log_interval == 0 or step == last_step


class Logging(Callback):
    """Makes the records, on every rank, and gives them to the trackers."""

    order = 60

    def __init__(self, run: RunConfig, trackers: Trackers, speedometer: Speedometer) -> None:
        super().__init__(run)
        self._trackers = trackers
        self._speedometer = speedometer

    def after_step(self, trainer: Training, outcome: StepOutcome) -> None:
        if not is_logged(self.run, outcome.step, trainer.last_step):
            return
        trainer.settle()
        record = self._record(trainer, outcome)
        trainer.callbacks.record(trainer, outcome, record)
        self._trackers.log(_finite(record))
        trainer.window.restart()

    def _record(self, trainer: Training, outcome: StepOutcome) -> dict[str, Any]:
        """One line of metrics.jsonl."""
        progress, window, batch = trainer.progress, trainer.window, trainer.batch
        seconds = window.seconds()
        speed = self._speedometer.speed(window.tokens, seconds)
        record: dict[str, Any] = {
            "step": progress.step,
            "loss": outcome.loss,
            "lr": outcome.lr,
            "grad_norm": outcome.result.grad_norm,
            "tokens_seen": progress.tokens_seen,
            "tokens_per_second": speed.tokens_per_second,
            "tflops_per_device": speed.tflops_per_device,
            "hardware_tflops_per_device": speed.hardware_tflops_per_device,
            "mfu": speed.mfu,
            "max_memory_mb": peak_memory_mb(),
            "data_wait_fraction": window.waited_seconds / seconds,
            "loss_scale": outcome.result.loss_scale,
            "skipped_steps": progress.skipped_steps,
            "nonfinite_steps": progress.nonfinite_steps,
            "bad_lines": batch.num_bad_lines,
        }
        if batch.sources:
            record["sources"] = batch.sources
        return record


def _finite(value: Any) -> Any:
    """A record whose numbers that are not finite are None: JSON has no word for them, and other programs stumble over
    Python's."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
