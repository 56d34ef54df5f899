"""Opens the gates of norms that become others, step by step."""

from __future__ import annotations

from llama_dyt.config.run import RunConfig
from llama_dyt.models.build import norm_sites
from llama_dyt.norms.by_name import norm_of
from llama_dyt.training.callbacks.callback import Callback, Training
from llama_dyt.training.step import StepOutcome
from llama_dyt.training.tapering.schedule import TaperSchedule


class Tapering(Callback):
    """Sets the gates before each step, in the model and in the config that is saved with it.

    Adds to a record taper_progress: the mean of all gates. No gate is closed again that the model came with open.
    """

    order = 20
    every_rank = True

    def __init__(self, run: RunConfig, schedule: TaperSchedule) -> None:
        super().__init__(run)
        self._schedule = schedule
        self._gates: list[float] = []

    def before_step(self, trainer: Training, step: int) -> None:
        module = trainer.boosted.module
        config, gate = module.config, norm_of(module.config).gate
        came_with = getattr(config, gate.field)
        self._gates = [max(pair) for pair in zip(came_with, self._schedule.gates(step), strict=True)]
        if self._gates != came_with:
            setattr(config, gate.field, self._gates)
            gate.open(config, (layer for _, layer in norm_sites(module)))

    def record(self, trainer: Training, outcome: StepOutcome) -> dict[str, float]:
        return {"taper_progress": sum(self._gates) / len(self._gates)}
