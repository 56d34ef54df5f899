"""Cases in which a rank is not as the others: slow, or with other weights than it should have."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from llama_dyt.boosters.boosted import Boosted
from llama_dyt.core.errors import TrainingError
from llama_dyt.data.loaders.step import Step
from llama_dyt.training.health import pace, spikes
from llama_dyt.training.loop import Trainer
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


SPIKES = (7, 11)
"""The batches, counted from 1, that make the loss jump."""
_SAVED, _LAST = 4, 9


def rolled_back(
    layout: Layout, precision: str, folder: str, late: bool
) -> tuple[list[str], dict[str, float], list[str]]:
    """A run that may go back once, of which two batches make the loss jump; and one that is resumed from the checkpoint
    that the first went back to, with the batches after the first spike.

    Returns:
        What was told, the counts of what does not count, and what differs between both runs after the last step.
    """
    flags = {
        "save_interval": _SAVED,
        "rollback_on_spike": 1,
        "spike_factor": 2.0,
        "warmup_steps": 4,
        "log_interval": 100,
    }
    run = small_run.run_config(layout, precision, **flags)
    with (
        mock.patch.object(spikes, "FEWEST", 4),
        mock.patch.object(Boosted, "runs_ahead", late),
        mock.patch.object(Trackers, "log", lambda self, record: None),
    ):
        trainer = training_cases.start(run, Path(folder))
        told: list[str] = []
        trainer.say = told.append
        with training_cases.open_batches(trainer, None) as batches:
            trainer.fit(_spiking(trainer, batches), _LAST)
        first = training_cases.finish(trainer, training_cases.Trace())

        straight = training_cases.start(
            run.replace(seed=small_run.SEED + 1, rollback_on_spike=0), resume_from=Path(folder) / f"step_{_SAVED:08d}"
        )
        straight.progress.position = {"step": SPIKES[0] + late}
        with training_cases.open_batches(straight, None) as batches:
            straight.fit(_spiking(straight, batches), _LAST)
        second = training_cases.finish(straight, training_cases.Trace())
    different = [name for name, tensor in first.tensors.items() if not torch.equal(tensor, second.tensors[name])]
    counts = {name: first.progress.pop(name) for name in ("rollbacks", "skipped_batches", "skipped_tokens")}
    different += [name for name, value in first.progress.items() if value != second.progress[name]]
    if (first.optimizer_steps, first.scaler) != (second.optimizer_steps, second.scaler):
        different.append("Adam's steps or the scaler")
    return told, counts, different


def _spiking(trainer: Trainer, batches: Iterable[Step]) -> Iterator[Step]:
    """The batches, some of which find embeddings a thousand times as large."""
    grid, spiking = trainer.boosted.grid, {"now": False}
    if grid.pp_rank == 0:
        embedding = trainer.boosted.module.get_input_embeddings()
        embedding.register_forward_hook(lambda module, given, made: made * -1000.0 if spiking["now"] else made)
    for step in batches:
        spiking["now"] = step.position["step"] in SPIKES
        yield step
        spiking["now"] = False
