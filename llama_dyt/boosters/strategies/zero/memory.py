"""What a rank holds of model states where ZeRO cuts some of them over the data-parallel ranks."""

from __future__ import annotations

from typing import Any

from llama_dyt.boosters.strategy import MASTER_BYTES, MOMENT_BYTES, WORKING_BYTES, StateBytes, share
from llama_dyt.config.run import RunConfig


def zero_state_bytes(run: RunConfig, part: Any, ranks: int, stage: int, offload: bool) -> StateBytes:
    """
    Args:
        part: `models.partition.StagePart`.
        ranks: that share the states.
        stage: 0 cuts nothing, 1 optimizer states, 2 gradients too.
        offload: optimizer states are in host memory.
    """
    working, whole = WORKING_BYTES[run.booster.mixed_precision], part.num_trained
    weights = float(working * part.num_parameters)
    cut = share(part, ranks)
    # In fp32 and without ZeRO the weights themselves are what Adam updates.
    a_number = MOMENT_BYTES + (MASTER_BYTES if stage or working != MASTER_BYTES else 0)
    states = a_number * float(cut if stage else whole)
    of_gradients = MASTER_BYTES if stage and run.booster.fp32_gradients else working
    gradients = of_gradients * float(cut if stage == 2 else whole)
    if offload:
        return StateBytes(weights, gradients, 0.0, host=states)
    return StateBytes(weights, gradients, states)
