"""What a run goes on from beside tensors and random generators: of checkpoints and of snapshots."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch.distributed as dist

from llama_dyt.config.run import RunConfig
from llama_dyt.core import ranks
from llama_dyt.data.order.shared_sequences import whole_position
from llama_dyt.training.callbacks.callback import Training
from llama_dyt.training.checkpoint.imports import modules_had
from llama_dyt.training.trackers.trackers import Trackers


class Counters:
    """Of one run."""

    def __init__(self, run: RunConfig, trackers: Trackers, batch: dict[str, int] | None) -> None:
        """`batch`: how a step's sequences came about, of `plan.global_batch`."""
        self._run = run
        self._trackers = trackers
        self._batch = {"batch": batch} if batch is not None else {}

    def of(self, trainer: Training) -> dict[str, Any]:
        """ "trainer_state", "schedule" and "optimizer_scalars" after the present step, as JSON can hold them; those of
        the first rank are kept. Collective."""
        boosted, grid = trainer.boosted, trainer.boosted.grid
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
            "imports": modules_had(),
            "callbacks": trainer.callbacks.state(),
            "trackers": list(self._run.run.trackers),
            "tracker_states": self._trackers.states(),
        }
        return {
            "trainer_state": trainer_state,
            "schedule": trainer.schedule.to_json(),
            "optimizer_scalars": {"steps": boosted.state.optimizer_steps(), "scaler": boosted.scaler.state_dict()},
        }
