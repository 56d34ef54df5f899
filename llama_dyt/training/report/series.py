"""Numbers over the steps of a run in bounded room: every stretch of a long run keeps its least and its largest."""

from __future__ import annotations

import math
from collections.abc import Mapping


class Series:
    """One number over steps.

    Args:
        limit: points that are given out at most; twice as many are held.
    """

    def __init__(self, limit: int = 1000) -> None:
        self._limit = limit
        self.steps: list[int] = []
        self.values: list[float] = []

    def add(self, step: int, value: float) -> None:
        """A value that is not finite is left out; one of an earlier step than the last takes the place of what follows
        it (the run went back)."""
        if not math.isfinite(value):
            return
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()
        self.steps.append(step)
        self.values.append(value)
        if len(self.steps) >= 2 * self._limit:
            self._thin()

    def points(self) -> tuple[list[int], list[float]]:
        """(steps, values), thinned to the limit."""
        if len(self.steps) > self._limit:
            self._thin()
        return self.steps, [shortened(value) for value in self.values]

    def _thin(self) -> None:
        """Leave of each of `limit / 2` equal stretches of steps its least and largest value, and both ends of all."""
        first, last = self.steps[0], self.steps[-1]
        width = (last - first + 1) / max(1, self._limit // 2 - 1)
        stretches: dict[int, list[int]] = {}
        for place, step in enumerate(self.steps):
            stretches.setdefault(int((step - first) / width), []).append(place)
        kept = {0, len(self.steps) - 1}
        for places in stretches.values():
            kept.add(min(places, key=self.values.__getitem__))
            kept.add(max(places, key=self.values.__getitem__))
        order = sorted(kept)
        self.steps = [self.steps[place] for place in order]
        self.values = [self.values[place] for place in order]


class Table:
    """Numbers by name (a value a norm, say) over steps. Where columns are many, those of a stretch of steps
    become one: of each name the largest."""

    def __init__(self, limit: int = 160) -> None:
        self._limit = limit
        self.steps: list[int] = []
        self._columns: list[dict[str, float]] = []

    def add(self, step: int, values: Mapping[str, float]) -> None:
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self._columns.pop()
        self.steps.append(step)
        self._columns.append({name: value for name, value in values.items() if math.isfinite(value)})
        if len(self.steps) >= 2 * self._limit:
            self._thin()

    def rows(self) -> tuple[list[int], dict[str, list[float | None]]]:
        """(steps, name → a value a step, None where there is none), the names in the order they came."""
        if len(self.steps) > self._limit:
            self._thin()
        names = dict.fromkeys(name for column in self._columns for name in column)
        return self.steps, {name: [shortened(column.get(name)) for column in self._columns] for name in names}

    def _thin(self) -> None:
        first = self.steps[0]
        width = (self.steps[-1] - first + 1) / self._limit
        stretches: dict[int, tuple[int, dict[str, float]]] = {}
        for step, column in zip(self.steps, self._columns):
            _, merged = stretches.get(int((step - first) / width), (0, {}))
            names = dict.fromkeys((*merged, *column))
            merged = {name: max(one[name] for one in (merged, column) if name in one) for name in names}
            stretches[int((step - first) / width)] = (step, merged)
        self.steps = [step for step, _ in stretches.values()]
        self._columns = [column for _, column in stretches.values()]


def shortened(value: float | None) -> float | int | None:
    """A number with as many digits as a picture shows."""
    return value if value is None or isinstance(value, int) else float(f"{value:.6g}")
