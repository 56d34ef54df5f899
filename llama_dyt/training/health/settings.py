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
