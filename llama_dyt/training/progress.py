"""How far a run is, and why it ended: plain values that the loop, its callbacks and checkpoints share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


@dataclass
class Progress:
    """How far a run is; what a checkpoint keeps beside tensors.

    Attributes:
        step: optimizer steps done, skipped ones included.
        skipped_steps: fp16 steps that overflowed and moved nothing; they do not advance the schedule.
        tokens_seen: input tokens over all ranks, those of steps that changed nothing too.
        position: where the data goes on (see `data.loaders`); None at the start.
        nonfinite_steps: those whose loss or gradient norm was not finite; they do advance the schedule.
        nonfinite_in_a_row: of these, the last ones without one that was good in between.
        recent_losses: finite ones of the last steps, oldest first, that the next is compared with.
        spike: of a loss spike that is not over, the step it began with and the highest loss.
        rollbacks: how often the run went back from one to a checkpoint.
        skipped_batches, skipped_tokens: that were trained on and do not count, since it went back.
    """

    step: int = 0
    skipped_steps: int = 0
    tokens_seen: int = 0
    position: dict[str, Any] | None = None
    nonfinite_steps: int = 0
    nonfinite_in_a_row: int = 0
    recent_losses: list[float] = field(default_factory=list)
    spike: dict[str, Any] | None = None
    rollbacks: int = 0
    skipped_batches: int = 0
    skipped_tokens: int = 0

    @classmethod
    def of_json(cls, saved: Mapping[str, Any]) -> Progress:
        """From what a checkpoint keeps; one of an earlier release lacks what came later."""
        return cls(**{name: saved[name] for name in cls.__dataclass_fields__ if name in saved})


class Ending(StrEnum):
    """Why a run ended, in words for its summary."""

    FINISHED = "finished"
    OUT_OF_DATA = "finished (end of the data)"
    INTERRUPTED = "saved and stopped on a signal"
