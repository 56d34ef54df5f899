"""Cases in which a rank is not as the others: slow, or with other weights than it should have."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from llama_dyt.core.errors import TrainingError
from llama_dyt.data.loaders.step import Step
from llama_dyt.training.health import pace
from llama_dyt.training.trackers.trackers import Trackers
from tests.distributed import small_run, training_cases
from tests.distributed.small_run import Layout


def slow_data(layout: Layout, seconds: float, num_steps: int) -> tuple[list[str], dict[str, float]]:
    """A run whose last rank waits for its batches; what is told, and what of it stands in a record."""
    with mock.patch.object(pace, "SECONDS", 0.0):
        trainer = training_cases.start(small_run.run_config(layout, layout.precisions[0]))
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


def flipped_bit(layout: Layout, precision: str, folder: str, what: str) -> tuple[int, str, str, list[str]]:
    """Three steps; then one bit of the last rank's is flipped in the first tensor whose name begins with `what`.

    Returns:
        How many tensors this rank compares, what differs before, what a save says after, and what was saved.
    """
    run = small_run.run_config(layout, precision, checksum_interval=1)
    trainer = training_cases.start(run, Path(folder))
    copies = trainer.health.copies
    with training_cases.open_batches(trainer, None) as batches:
        training_cases.follow(trainer, batches, training_cases.Trace(), 3)
    trainer.settle()
    compared = sum(len(sums) for sums in copies._sums().values())
    before = str(copies.difference() or "")
    if dist.get_rank() == dist.get_world_size() - 1:
        tensors = [tensor for _, name, tensor in trainer.boosted.state.copies() if name.startswith(what)]
        tensor = next(tensor for tensor in tensors if tensor.numel())
        bits = tensor.view(-1).view({2: torch.int16, 4: torch.int32}[tensor.element_size()])
        bits[len(bits) // 2] ^= 1
    told = ""
    try:
        trainer.save()
    except TrainingError as error:
        told = str(error)
    return compared, before, told, sorted(path.name for path in Path(folder).iterdir())


def nothing_to_compare(layout: Layout) -> tuple[bool, int]:
    """Whether ranks hold anything in common, and how many tensors there are to look at for it."""
    trainer = training_cases.start(small_run.run_config(layout, "bf16"))
    return trainer.health.copies.any_shared(), sum(1 for _ in trainer.boosted.state.copies())
