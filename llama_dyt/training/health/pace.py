"""Which rank keeps the others waiting: figures of each rank's own work compared, and a clear outlier named.

A run is as fast as its slowest rank, and from its metrics nobody sees which that is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median_low

RECORDS = 3
"""So many records in a row the same rank has to be slow before it is named."""
SECONDS = 20.0
"""And for so long: a machine that did something else for a moment is no fault."""
_NOTABLE_SECONDS = 0.05
"""Less than this a step is no reason by itself: records of a small model's steps cost as much."""


@dataclass(frozen=True)
class Own:
    """What a rank needs by itself, in seconds.

    Attributes:
        layer: of a forward pass through one decoder layer.
        data: a step that it waits for its batch.
        between: a step that it is busy with what is no step: records, callbacks.
    """

    layer: float
    data: float
    between: float


@dataclass(frozen=True)
class Slowness:
    """Of the slowest rank of a record.

    Attributes:
        rank: which it is.
        factor: how many times longer a step takes, or its layers take, than without its being slow.
        own: its figures.
        usual: the median of each over the ranks.
    """

    rank: int
    factor: float
    own: Own
    usual: Own


def slowest(ranks: Sequence[Own], step_seconds: float) -> Slowness:
    """The rank that holds up the others most.

    Args:
        ranks: of each its figures, in order; at least one.
        step_seconds: that a step takes, of all of them.
    """
    # Of two ranks the faster one is the usual.
    usual = Own(*(median_low(getattr(own, name) for own in ranks) for name in ("layer", "data", "between")))

    def factor(own: Own) -> float:
        layers = own.layer / usual.layer if usual.layer > 0 else 1.0
        waits = [own.data - usual.data, own.between - usual.between]
        waited = sum(wait for wait in waits if wait >= _NOTABLE_SECONDS)
        return max(layers, step_seconds / max(step_seconds - waited, 1e-3))

    rank = max(range(len(ranks)), key=lambda number: factor(ranks[number]))
    return Slowness(rank, factor(ranks[rank]), ranks[rank], usual)


class Pace:
    """Hears of the slowest rank of each record, and says when it is one rank again and again.

    Args:
        bound: factor from which a rank is slow.
        names: of the ranks, in words.
        clock: seconds.
    """

    def __init__(self, bound: float, names: Sequence[str], clock: Callable[[], float]) -> None:
        self._bound = bound
        self._names = names
        self._clock = clock
        self._rank: int | None = None
        self._records, self._since = 0, 0.0
        self._named: int | None = None
        self._others = 0

    def hear(self, found: Slowness) -> str | None:
        """A line to be told, or None: once when a rank is found to be slow, once when it no longer is."""
        slow = found.rank if found.factor >= self._bound else None
        if slow is None or slow != self._rank:
            self._rank, self._records, self._since = slow, 0, self._clock()
        self._records += 1
        if self._named is not None:
            self._others = 0 if slow == self._named else self._others + 1
            if self._others >= RECORDS:
                keeps_up, self._named, self._others = self._named, None, 0
                return f"{self._names[keeps_up]} keeps up with the others again"
        lasting = self._records >= RECORDS and self._clock() - self._since >= SECONDS
        if slow is None or slow == self._named or not lasting:
            return None
        self._named, self._others = slow, 0
        return f"{self._names[slow]} is slow: {_in_words(found)}, in {self._records} records in a row"


def _in_words(found: Slowness) -> str:
    own, usual = found.own, found.usual
    reasons = [f"a layer {own.layer / usual.layer:.1f}x the median"] if usual.layer > 0 else []
    reasons.append(f"data wait {own.data:.2f} s a step (median {usual.data:.2f} s)")
    if own.between - usual.between >= _NOTABLE_SECONDS:
        reasons.append(f"busy beside its steps {own.between:.2f} s a step (median {usual.between:.2f} s)")
    return ", ".join(reasons)
