"""Steps on a GPU in which torch raises wherever the host would wait for the device.

Its own file because the workers of a pool import it.
"""

from __future__ import annotations

from itertools import islice
from unittest import mock

import torch

from llama_dyt.boosters.strategy import Strategy
from llama_dyt.config.run import RunConfig
from llama_dyt.training.loop import Trainer
from tests.distributed import small_run, training_cases
from tests.distributed.small_run import Layout


def start(layout: Layout, precision: str, flags: dict[str, object]) -> Trainer:
    """A trainer whose ZeRO runs on one GPU too, where a run would leave it out."""

    def asked_for(strategy: Strategy, run: RunConfig, ranks: int) -> int:
        return strategy.zero_stage(run.booster.zero) or 0

    with mock.patch.object(Strategy, "stage_of", asked_for):
        return training_cases.start(small_run.run_config(layout, precision, **flags))


def steps_without_waiting(layout: Layout, precision: str, **flags: object) -> list[float]:
    """Losses of six steps, of which the last three were started without a wait."""
    trainer = start(layout, precision, flags)
    assert trainer.boosted.runs_ahead
    steps = list(islice(small_run.batches(trainer.boosted.run, 0, 1), 6))
    outcomes = [trainer.train_step(step) for step in steps[:3]]
    torch.cuda.set_sync_debug_mode("error")
    try:
        outcomes += [trainer.train_step(step) for step in steps[3:]]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    trainer.settle()
    return [outcome.loss for outcome in outcomes]


def losses(layout: Layout, precision: str, **flags: object) -> list[float]:
    """The same steps, each looked at before the next."""
    trainer = start(layout, precision, flags)
    return [trainer.train_step(step).loss for step in islice(small_run.batches(trainer.boosted.run, 0, 1), 6)]
