"""Loss spikes: a step whose loss is far above what the last steps had.

The threshold is robust: the median of the last losses and their median absolute deviation, which no single step moves.
"""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass
from statistics import median

WINDOW = 128
"""So many losses of the last steps are compared with."""
FEWEST = 32
"""With fewer nothing is said."""
LEAST_RISE = 0.1
"""Nats above the median that a spike has at least: where losses hardly differ any more, a little is many deviations."""
_DEVIATION = 1.4826
"""Median absolute deviations of a normal distribution in one standard deviation."""


@dataclass(frozen=True)
class Spike:
    """A step's loss, and what it is compared with."""

    loss: float
    usual: float
    threshold: float
    losses: int

    def in_words(self) -> str:
        return (
            f"loss {self.loss:.4f} is a spike: the median of {self.losses} steps before is {self.usual:.4f}, "
            f"the threshold {self.threshold:.4f}"
        )


def look(losses: Sequence[float], loss: float, factor: float) -> Spike | None:
    """Whether a loss is a spike.

    Args:
        losses: of the steps before, finite.
        factor: standard deviations, estimated from the median absolute deviation, that it is above their median.
    """
    least = loss - LEAST_RISE
    # Nearly always few of the losses are so far below it: no need to sort them then.
    if len(losses) < FEWEST or 2 * sum(map(least.__ge__, losses)) < len(losses):
        return None
    usual = median(losses)
    deviation = _DEVIATION * median(abs(one - usual) for one in losses)
    threshold = usual + max(factor * deviation, LEAST_RISE)
    return Spike(loss, usual, threshold, len(losses)) if loss > threshold else None


def remember(losses: MutableSequence[float], loss: float) -> None:
    """Keep the newest."""
    losses.append(loss)
    if len(losses) > WINDOW:
        del losses[: len(losses) - WINDOW]
