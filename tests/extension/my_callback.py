"""Callbacks as a user writes them, in one file: the weights' norm every so many steps, and one that fails."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from llama_dyt.config.options import option
from llama_dyt.training.callbacks.callback import CALLBACKS, Callback


@dataclass(frozen=True)
class DriftSettings:
    """Flags of the callback's own; a run has them as `run.drift`."""

    drift_every: int = option(2, "drift: steps between looks at the weights.", at_least=1)


class Drift(Callback):
    """Counts its looks, and writes the mean of a number of every rank: all of them have to come to the same step."""

    name, settings, collective = "drift", DriftSettings, True

    def __init__(self, run):
        super().__init__(run)
        self.looks = 0
        self.file = Path(run.run.save_dir) / "drift.jsonl"

    def due(self, step):
        return step % self.run.drift.drift_every == 0

    def on_start(self, trainer):
        self._write(event="start", step=trainer.progress.step)

    def after_step(self, trainer, outcome):
        self.looks += 1
        ranks = torch.tensor(float(dist.get_rank()), device=trainer.boosted.device)
        dist.all_reduce(ranks)
        self._write(event="look", step=outcome.step, loss=outcome.loss, ranks=ranks.item())

    def record(self, trainer, outcome):
        return {"looks": self.looks}

    def on_save(self, trainer, path):
        self._write(event="save", step=trainer.progress.step, whole=(path / "trainer_state.json").is_file())

    def on_end(self, trainer, ending):
        self._write(event="end", step=trainer.progress.step, ending=str(ending))

    def state(self):
        return {"looks": self.looks}

    def load_state(self, state):
        self.looks = state["looks"]

    def _write(self, **line):
        if dist.get_rank() == 0:
            with self.file.open("a") as file:
                file.write(json.dumps({**line, "looks": self.looks}) + "\n")


class Failing(Callback):
    """On the first rank alone, before the third step."""

    name = "failing"

    def before_step(self, trainer, step):
        if step == 3:
            raise ValueError("no such luck")


CALLBACKS.register(Drift)
CALLBACKS.register(Failing)
