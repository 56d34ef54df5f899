"""Which rank is slow, told with the records."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from llama_dyt.boosters.boosted import gathered_from_ranks
from llama_dyt.config.run import RunConfig
from llama_dyt.core import ranks
from llama_dyt.training.callbacks.callback import Callback, Training
from llama_dyt.training.health.pace import Own, Pace, slowest
from llama_dyt.training.measurement.layer_times import LayerTimes
from llama_dyt.training.step import StepOutcome
from llama_dyt.training.trackers.trackers import Trackers

_TIMED_STEPS = 20
"""Of a record, so many at most."""


class SlowRanks(Callback):
    """Times this rank's own work, compares it with that of the others, and adds the slowest to the record.

    slowest_rank: which rank holds up the others most
    slowest_rank_factor: by how much: its layers' time as a multiple of the median, or a step's as one of what it would
        be if the rank did not wait longer than the others for data, or were not longer busy beside its steps
    data_wait_most: seconds a step that the rank that waits most for data does so
    """

    order = 20

    def __init__(self, run: RunConfig, trackers: Trackers) -> None:
        super().__init__(run)
        self._trackers = trackers
        self._times = LayerTimes()
        self._timing = ExitStack()
        self._every = max(1, run.run.log_interval // _TIMED_STEPS)
        self._pace: Pace | None = None

    def on_start(self, trainer: Training) -> None:
        hosts = ranks.gather(socket.gethostname(), "learning which rank is where")
        names = [f"rank {rank} (host {host})" for rank, host in enumerate(hosts)]
        self._pace = Pace(self.run.health.slow_rank_factor, names, time.monotonic)

    def before_step(self, trainer: Training, step: int) -> None:
        if step % self._every == 0:
            boosted = trainer.boosted
            self._timing.enter_context(self._times.of(boosted.own_layers(), boosted.device.type == "cuda"))

    def after_step(self, trainer: Training, outcome: StepOutcome) -> None:
        self._timing.close()

    def record(self, trainer: Training, outcome: StepOutcome) -> Mapping[str, Any]:
        window = trainer.window
        steps, seconds = max(window.steps, 1), window.seconds()
        own = [self._times.take(), window.waited_seconds / steps, window.seconds_between() / steps]
        found = [Own(*figures) for figures in gathered_from_ranks(own, trainer.boosted.device)]
        slow = slowest(found, seconds / steps)
        told = self._pace.hear(slow)
        if told is not None:
            trainer.say(f"step {outcome.step}: {told}")
            self._trackers.log_event(outcome.step, "slow", told)
        return {
            "slowest_rank": slow.rank,
            "slowest_rank_factor": slow.factor,
            "data_wait_most": max(figures.data for figures in found),
        }
