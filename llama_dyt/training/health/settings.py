"""The flags of what becomes of a run that no longer learns as it should."""

from __future__ import annotations

from dataclasses import dataclass

from llama_dyt.config.options import TRAINING, option


@dataclass(frozen=True)
class HealthSettings:
    """Steps that are no good, and how many of them a run bears."""

    skip_nonfinite: int = option(
        1,
        "End the run with the N-th step in a row whose loss or gradient norm is not finite. No such step changes "
        "weights or moments; before the N-th the run goes on with the next batch, and says so.",
        entries=TRAINING,
        metavar="N",
        at_least=1,
    )
    slow_rank_factor: float | None = option(
        1.5,
        "Name a rank, in the log and as an event, whose layers take so many times the median of all ranks, or that "
        "makes steps so many times longer by waiting for its data or by what it does beside steps, in several records "
        "in a row. None does not look.",
        entries=TRAINING,
        above=1,
    )
