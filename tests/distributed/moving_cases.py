"""What the processes of `test_moving.py` run: save under one layout, go on under another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from llama_dyt.data.loaders.step import Step
from llama_dyt.training.loop import Trainer
from tests.distributed import small_run
from tests.distributed.small_run import Layout
from tests.distributed.training_cases import open_batches, start, tensors_of

SAVE_AT = 5
STEPS_AFTER = 10


@dataclass
class Leg:
    """The ten steps from a checkpoint on, as one rank saw them.

    Attributes:
        dp_rank: which rows of a global batch it read.
        tensors: fp32 weights and Adam's moments it began with, on the ranks that write them.
        rows: token ids of every step, (rows, length).
        num_label_tokens: of every step's global batch.
        losses, lrs: of every step.
    """

    dp_rank: int
    tensors: dict[str, torch.Tensor]
    rows: list[torch.Tensor] = field(default_factory=list)
    num_label_tokens: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)


def all_tensors(legs: list[Leg]) -> dict[str, torch.Tensor]:
    """What all ranks of a run began with."""
    return {name: tensor for leg in legs for name, tensor in leg.tensors.items()}


def save(layout: Layout, text: str, folder: str, steps: tuple[int, int] = (SAVE_AT, STEPS_AFTER), **more: Any) -> Leg:
    """Train, save, go on.

    Args:
        steps: before the checkpoint and after it.
        more: as for `_start`.
    """
    before, after = steps
    trainer = _start(layout, folder=Path(folder), **more)
    with open_batches(trainer, text) as batches:
        every: Iterator[Step] = iter(batches)
        for step in islice(every, before):
            trainer.train_step(step)
        trainer.save()
        return _follow(trainer, every, after)


def load(layout: Layout, text: str, path: str, num_steps: int = STEPS_AFTER, **more: Any) -> Leg:
    """Go on from a checkpoint, in a run that would begin with other weights."""
    trainer = _start(layout, resume_from=Path(path), seed=small_run.SEED + 1, **more)
    with open_batches(trainer, text) as batches:
        return _follow(trainer, iter(batches), num_steps)


def _start(
    layout: Layout,
    folder: Path | None = None,
    resume_from: Path | None = None,
    accumulation: int = 1,
    family: str = "15m",
    **flags: Any,
) -> Trainer:
    run = small_run.run_config(
        layout, layout.precisions[0], accumulation, lr_scheduler="cosine", warmup_steps=4, **flags
    )
    return start(run, folder, resume_from, family=family)


def _follow(trainer: Trainer, steps: Iterator[Step], num_steps: int) -> Leg:
    leg = Leg(trainer.boosted.grid.dp_rank, tensors_of(trainer))
    for step in islice(steps, num_steps):
        leg.rows.append(torch.cat([micro_batch["input_ids"] for micro_batch in step.micro_batches]))
        leg.num_label_tokens.append(step.num_label_tokens)
        outcome = trainer.train_step(step)
        leg.losses.append(outcome.loss)
        leg.lrs.append(outcome.lr)
    return leg
