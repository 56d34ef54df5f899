"""The mistakes a person can make, one exception type a kind, all under one base.

Its own file because every part of the package raises them and the entries catch the base: whatever derives from
`LlamaDytError` is shown as its message alone, without a traceback, and ends the program with `EXIT_STATUS`.
"""

from __future__ import annotations

from collections.abc import Iterable

EXIT_STATUS = 2
"""What a program ends with after such an error: argparse's own number for a wrong command line."""


class LlamaDytError(Exception):
    """Something the user can put right. The message says what is wrong, the value seen, and what to do."""


class ConfigurationError(LlamaDytError):
    """Flags, YAML keys or sizes that cannot make a run.

    Args:
        problems: one message, or several found together; each is one line. `str()` joins them with newlines.
    """

    def __init__(self, problems: str | Iterable[str]):
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self):
        # Exception pickles `args`, the joined text; this keeps the list when the error crosses a process boundary.
        return type(self), (self.problems,)


class DataError(LlamaDytError):
    """A dataset, a document in it, or a tokenizer that cannot be read or does not fit the model."""


class CheckpointError(LlamaDytError):
    """A checkpoint that is absent, incomplete, of another model, or that could not be written."""


class TrainingError(LlamaDytError):
    """A run that cannot go on: a loss that is not finite, a rank that fell out of step, a lost device."""
