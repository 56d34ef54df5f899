"""Cases in which a rank is not as the others: slow, or with other weights than it should have."""

from __future__ import annotations

import time
from collections.abc import Iterator
from unittest import mock

import torch.distributed as dist

from llama_dyt.data.loaders.step import Step
from llama_dyt.training.health import pace
from llama_dyt.training.trackers.trackers import Trackers
from tests.distributed import small_run, training_cases
from tests.distributed.small_run import Layout


def slow_data(layout: Layout, seconds: float, num_steps: int) -> tuple[list[str], dict[str, float]]:
    """A run whose last rank waits for its batches; what is told, and what of it stands in a record."""
    with mock.patch.object(pace, "SECONDS", 0.0):
        trainer = training_cases.start(small_run.run_config(layout, "fp32"))
        told: list[str] = []
        trainer.say = told.append
        grid, records = trainer.boosted.grid, []

        def batches() -> Iterator[Step]:
            for step in small_run.batches(trainer.boosted.run, grid.dp_rank, grid.dp_size):
                if dist.get_rank() == dist.get_world_size() - 1:
                    time.sleep(seconds)
                yield step

        with mock.patch.object(Trackers, "log", lambda self, record: records.append(record)):
            trainer.fit(batches(), num_steps)
    names = ("slowest_rank", "slowest_rank_factor", "data_wait_most")
    return told, {name: records[-1][name] for name in names}
