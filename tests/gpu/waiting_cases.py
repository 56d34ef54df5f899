"""Steps on a GPU in which torch raises wherever the host would wait for the device.

Its own file because the workers of a pool import it.
"""

from __future__ import annotations

from itertools import islice

import torch

from tests.distributed import small_run, training_cases
from tests.distributed.small_run import Layout


def steps_without_waiting(layout: Layout, precision: str, **flags: object) -> list[float]:
    """Losses of six steps, of which the last three were started without a wait."""
    trainer = training_cases.start(small_run.run_config(layout, precision, **flags))
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
    trainer = training_cases.start(small_run.run_config(layout, precision, **flags))
    return [trainer.train_step(step).loss for step in islice(small_run.batches(trainer.boosted.run, 0, 1), 6)]
