"""Checkpoints in the course of a run: every so many steps, and at its end."""

from __future__ import annotations

import time
from dataclasses import asdict

import torch.distributed as dist

from llama_dyt.config.run import RunConfig
from llama_dyt.core import ranks
from llama_dyt.core.store import Location
from llama_dyt.data.order.shared_sequences import whole_position
from llama_dyt.training.callbacks.callback import Callback, Training
from llama_dyt.training.checkpoint.generators import rng_state
from llama_dyt.training.checkpoint.imports import modules_had
from llama_dyt.training.checkpoint.writer import CheckpointWriter
from llama_dyt.training.step import StepOutcome
from llama_dyt.training.trackers.trackers import Trackers


class Checkpointing(Callback):
    """Saves every --save_interval steps, and after the last one.

    Attributes:
        writer: of the run's checkpoints.
    """

    order = 80

    def __init__(
        self,
        run: RunConfig,
        writer: CheckpointWriter,
        trackers: Trackers | None = None,
        batch: dict[str, int] | None = None,
    ) -> None:
        """`batch`: how a step's sequences came about, of `plan.global_batch`."""
        super().__init__(run)
        self._batch = {"batch": batch} if batch is not None else {}
        self.writer = writer
        self._trackers = trackers or Trackers()
        self._saved_step = 0

    def due(self, step: int) -> bool:
        return step % self.run.run.save_interval == 0

    def on_start(self, trainer: Training) -> None:
        self._saved_step = trainer.progress.step  # where a resumed run starts; a new one has nothing to save yet

    def after_step(self, trainer: Training, outcome: StepOutcome) -> None:
        trainer.settle()
        if trainer.stopping:
            return
        self.save(trainer)
        trainer.learn_of_signals()  # a save takes long enough for one, and a step more would ask for another
        trainer.window.restart()

    def before_end(self, trainer: Training) -> None:
        if self._saved_step != trainer.progress.step:
            self.save(trainer)

    def save(self, trainer: Training) -> Location:
        """Write a checkpoint of the present step, and tell of it; all ranks call it.

        Raises:
            TrainingError: the step was no good, or a weight or moment is not finite; nothing is written then.
        """
        start = time.perf_counter()
        trainer.settle()
        trainer.health.require_finite_state(trainer.progress.step)
        boosted, step = trainer.boosted, trainer.progress.step
        generators = ranks.gather(rng_state(), "saving the random generators")
        grid = boosted.grid
        where = whole_position(trainer.progress.position, lambda own: ranks.gather(own, "saving the place in the data"))
        trainer_state = {
            **asdict(trainer.progress),
            "position": where,
            **self._batch,
            "world_size": dist.get_world_size(),
            "data_parallel_size": grid.dp_size,
            "tensor_parallel_size": grid.tp_size,
            "pipeline_parallel_size": grid.pp_size,
            "sequence_parallel_size": grid.sp_size,
            "plugin": boosted.run.booster.plugin,
            "mixed_precision": boosted.run.booster.mixed_precision,
            "rng": generators,
            "imports": modules_had(),
            "callbacks": trainer.callbacks.state(),
            "trackers": list(self.run.run.trackers),
            "tracker_states": self._trackers.states(),
        }
        optimizer = {"steps": boosted.state.optimizer_steps(), "scaler": boosted.scaler.state_dict()}
        path = self.writer.save(step, trainer_state, trainer.schedule.to_json(), optimizer)
        self._saved_step = step
        trainer.save_seconds = time.perf_counter() - start
        trainer.say(f"saved {path} in {trainer.save_seconds:.1f} s")
        self._trackers.log_event(step, "saved", f"checkpoint in {trainer.save_seconds:.1f} s")
        trainer.callbacks.on_save(trainer, path)
        self._trackers.saved(step)
        return path
