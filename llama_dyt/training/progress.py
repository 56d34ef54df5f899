"""How far a run is, and why it ended: plain values that the loop, its callbacks and checkpoints share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


@dataclass
class Progress:
    """How far a run is; what a checkpoint keeps beside tensors.

    Attributes:
        step: optimizer steps done, skipped ones included.
        skipped_steps: fp16 steps that overflowed and moved nothing; they do not advance the schedule.
        tokens_seen: input tokens over all ranks.
        position: where the data goes on (see `data.loaders`); None at the start.
    """

    step: int = 0
    skipped_steps: int = 0
    tokens_seen: int = 0
    position: dict[str, Any] | None = None


class Ending(StrEnum):
    """Why a run ended, in words for its summary."""

    FINISHED = "finished"
    OUT_OF_DATA = "finished (end of the data)"
    INTERRUPTED = "saved and stopped on a signal"
