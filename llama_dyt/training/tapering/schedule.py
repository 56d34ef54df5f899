"""How far each norm of a model is on its way at each step: it follows from the step alone, so a run resumes exactly."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaperSchedule:
    """Norm after norm in the order that data goes through them, the final one last, each in a window of equal length.

    Attributes:
        sites: how many norms there are.
        start: steps before the first window.
        steps: from there to the end of the last window, at least 1.
        overlap: share of a window that the next one has with it: 0, one after the other, to 1, all together.
    """

    sites: int
    start: int
    steps: int
    overlap: float

    @property
    def window(self) -> float:
        """Steps in which one norm becomes the other."""
        return self.steps / (1 + (self.sites - 1) * (1 - self.overlap))

    def gates(self, step: int) -> list[float]:
        """What each gate is in a step, counted from 1: 0 before its window, 1 from its last step on, a line between."""
        window = self.window
        behind = [step - self.start - site * (1 - self.overlap) * window for site in range(self.sites)]
        # A hundred-thousandth of a step, so that rounding leaves no gate a hair from its end.
        return [1.0 if done >= window - 1e-5 else max(0.0, done / window) for done in behind]

    @property
    def last_step(self) -> int:
        """The first step in which all gates are at 1."""
        return self.start + self.steps
