"""The flags of what becomes of a run that no longer learns as it should."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llama_dyt.config.options import TRAINING, option
from llama_dyt.config.run import RunConfig
from llama_dyt.core.problem import Problem


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
    spike_factor: float | None = option(
        8.0,
        "Tell, in the log and as an event, of a step whose loss is so many standard deviations (estimated from the "
        "median absolute deviation) above the median of the last 128 steps, and 0.1 at least. None does not look.",
        entries=TRAINING,
        above=0,
    )
    rollback_on_spike: int = option(
        0,
        "Where the loss has such a spike, go back to the last checkpoint and go on with the data that follow, so that "
        "the batches since are left out; at most so often a run, 3 times where no number is given. 0 does not.",
        entries=TRAINING,
        metavar="TIMES",
        bare="3",
        at_least=0,
    )
    checksum_interval: int | None = option(
        None,
        "Every so many steps, and before each save and snapshot, compare checksums of the weights, masters and moments "
        "that several ranks must hold alike, and end the run, naming the ranks, where they differ. None does not.",
        entries=TRAINING,
        metavar="STEPS",
        at_least=1,
    )


def health_problems(run: RunConfig, world_size: int | None) -> Iterator[Problem]:
    """What of it has no effect."""
    if run.health.checksum_interval is not None and world_size == 1:
        reason, remedy = "compares what several ranks hold, and this run has one", "leave it out"
        yield Problem("checksum_interval", run.health.checksum_interval, reason, remedy, clause=True)
    if run.health.rollback_on_spike and run.health.spike_factor is None:
        reason, remedy = "has no effect without --spike_factor, spikes are not looked for", "add that, or leave it out"
        yield Problem(
            "rollback_on_spike", run.health.rollback_on_spike, reason, remedy, also=("spike_factor",), clause=True
        )
    if run.health.rollback_on_spike and run.tapering.taper_steps is not None:
        reason, remedy = "cannot close the gates again that --taper_steps has opened since", "leave one out"
        yield Problem("rollback_on_spike", run.health.rollback_on_spike, reason, remedy, also=("taper_steps",))
