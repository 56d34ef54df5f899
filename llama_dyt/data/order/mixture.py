"""Which source each sequence of a mixture comes from: by weight, in whole numbers, the same on every rank.

It is arithmetic that knows nothing of data; a place in it is a few counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction


class MixtureSchedule:
    """Deals out turns to sources so that each has had its share at every moment, within less than one turn.

    Tijdeman's algorithm for the chairman assignment problem (Discrete Mathematics 32, 1980): of the n sources whose
    share runs ahead of their turns by 1/(2n-2) or more, the one that would first fall a whole turn behind comes next.
    No source is then ever more than 1 - 1/(2n-2) turns from its share.

    When a source stops, the count begins anew with the others at their relative weights, so the bound holds for what
    is dealt out from there on.

    Args:
        weights: a positive share of each source; they need not sum to one.
        counts: turns of each source since the last stop (`state` of an earlier one); None for the start.
        stopped: the numbers of the sources that have stopped.
    """

    def __init__(
        self, weights: Sequence[Fraction], counts: Sequence[int] | None = None, stopped: Sequence[int] = ()
    ) -> None:
        if not weights or any(weight <= 0 for weight in weights):
            raise ValueError(f"weights {list(weights)}: each must be above 0, and there must be one")
        scale = math.lcm(*(weight.denominator for weight in weights))
        self._weights = [int(weight * scale) for weight in weights]
        self._running = [number for number in range(len(weights)) if number not in stopped]
        self._counts = list(counts) if counts is not None else [0] * len(weights)
        self._turns = sum(self._counts)
        self._total = sum(self._weights[number] for number in self._running)

    @property
    def running(self) -> list[int]:
        """Numbers of the sources that have not stopped."""
        return list(self._running)

    @property
    def state(self) -> list[int]:
        """Turns of each source since the last stop; JSON-able."""
        return list(self._counts)

    def next(self) -> int:
        """The number of the source whose turn it is. Raises IndexError when all have stopped."""
        chosen = self._running[0] if len(self._running) < 2 else self._choose()
        self._counts[chosen] += 1
        self._turns += 1
        return chosen

    def _choose(self) -> int:
        # Everything times (2n-2) * the sum of the weights, so that all numbers are whole.
        factor = 2 * len(self._running) - 2
        chosen, chosen_slack, chosen_weight = -1, 0, 1
        for number in self._running:
            weight = self._weights[number]
            behind = factor * (weight * (self._turns + 1) - self._total * self._counts[number])
            if behind < self._total:
                continue
            slack = (factor - 1) * self._total - behind
            if chosen < 0 or slack * chosen_weight < chosen_slack * weight:
                chosen, chosen_slack, chosen_weight = number, slack, weight
        return chosen

    def stop(self, number: int) -> None:
        """A source has nothing more: the others share the turns from here on."""
        self._running.remove(number)
        self._counts = [0] * len(self._weights)
        self._turns = 0
        self._total = sum(self._weights[number] for number in self._running)
