"""One thing that is wrong with what was asked for, as data: which flag, which value, why, and what to do."""

from __future__ import annotations

from typing import Any


class Problem(str):
    """A message with its parts. It is the text that is shown, so it can stand wherever a plain message can.

    Attributes:
        flag: long name of the flag, without dashes.
        value: what it was given; None and True, as a switch has, are not shown.
        reason: why that cannot be.
        remedy: what to do; empty where the reason says it.
        also: other flags that the reason follows from: where one of these could not be read, nobody asked for this.
        local: it follows from what this machine has, such as the kind of its device or the data on it. A dry run,
            which may plan for another machine, tells such in passing.
        clause: the reason goes on from the flag as one sentence ("--tp 3 does not divide …"), without a colon.
    """

    flag: str
    value: Any
    reason: str
    remedy: str
    also: tuple[str, ...]
    local: bool
    clause: bool

    def __new__(
        cls,
        flag: str,
        value: Any,
        reason: str,
        remedy: str = "",
        *,
        also: tuple[str, ...] = (),
        local: bool = False,
        clause: bool = False,
        text: str | None = None,
    ) -> Problem:
        """
        Args:
            text: the whole message, where flag and value stand elsewhere than at its beginning.
        """
        if text is None:
            shown = f"--{flag}" if value is None or value is True else f"--{flag} {in_words(value)}"
            text = f"{shown}{' ' if clause else ': '}{reason}" + (f"; {remedy}" if remedy else "")
        problem = super().__new__(cls, text)
        problem.flag, problem.value, problem.reason, problem.remedy = flag, value, reason, remedy
        problem.also, problem.local, problem.clause = also, local, clause
        return problem

    @property
    def flags(self) -> tuple[str, ...]:
        """All flags that it follows from."""
        return (self.flag, *self.also)

    def of(self, flag: str, value: Any = None) -> Problem:
        """The same problem where another flag brought the value, as another program has it; None keeps the value."""
        value = self.value if value is None else value
        return Problem(flag, value, self.reason, self.remedy, also=self.also, local=self.local, clause=self.clause)

    def here(self) -> Problem:
        """The same problem as one that follows from what this machine has."""
        return _restored({**vars(self), "text": str(self), "local": True})

    def __reduce__(self):
        return _restored, ({**vars(self), "text": str(self)},)


def _restored(parts: dict[str, Any]) -> Problem:
    return Problem(**parts)


def flags_of(problem: str) -> tuple[str, ...]:
    """The flags that a problem follows from; none where it is a plain message."""
    return problem.flags if isinstance(problem, Problem) else ()


def in_words(value: Any) -> str:
    """A flag's value as it is shown: numbers without zeros that say nothing."""
    return f"{value:g}" if isinstance(value, float) else str(value)
