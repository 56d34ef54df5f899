"""The mistakes a person can make, one exception type a kind, all under one base.

Every part of the package raises them and the entries catch the base: whatever derives from `LlamaDytError` is shown as
its message alone, without a traceback, and ends the program with `EXIT_STATUS`.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable

EXIT_STATUS = 2
"""What a program ends with after such an error: argparse's own number for a wrong command line."""


class LlamaDytError(Exception):
    """Something the user can put right. The message says what is wrong, the value seen, and what to do."""


class ConfigurationError(LlamaDytError):
    """Flags, YAML keys or sizes that cannot make a run.

    Args:
        problems: one message, or several found together; each is one line, and a `Problem` where its flag is known.
            `str()` joins them with newlines.
    """

    def __init__(self, problems: str | Iterable[str]):
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self):
        # Exception pickles `args`, the joined text; this keeps the list when the error crosses a process boundary.
        return type(self), (self.problems,)


class DataError(LlamaDytError):
    """A dataset, a document in it, or a tokenizer that cannot be read or does not fit the model.

    Args:
        message: what is wrong; it begins with what it is about, where that is given.
        about: the dataset, or the file of it.
        noun: what that is, where its name does not say it ("dataset"); `str()` has it before the message.
    """

    def __init__(self, message: str, about: str | os.PathLike | None = None, noun: str = ""):
        self.message, self.about, self.noun = message, about, noun
        super().__init__(f"{noun} {message}" if noun else message)

    def __reduce__(self):
        return type(self), (self.message, self.about, self.noun)

    def names(self, dataset: str) -> bool:
        """Whether the message begins with a dataset as it was named, or with a file in it."""
        return self.about is not None and str(self.about).startswith(dataset)


class CheckpointError(LlamaDytError):
    """A checkpoint that is absent, incomplete, of another model, or that could not be written."""


class TrainingError(LlamaDytError):
    """A run that cannot go on: a loss that is not finite, a rank that fell out of step, a lost device."""


class StoreError(LlamaDytError, OSError):
    """A store (S3, the web, one of a user's own) that cannot do what was asked of it: "ADDRESS: why, what to do"."""

    def is_told_in(self, lines: Iterable[str]) -> bool:
        """Whether one of them says as much, be it of another address."""
        reason = str(self).partition(": ")[2] or str(self)
        return any(reason in line for line in lines)


def in_one_line(error: BaseException) -> str:
    """An exception's type and message, as "KeyError: 'gone'"."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def raised_at(error: BaseException) -> str:
    """Where an exception was raised, as "file.py, line 3": of what went wrong in a part of the user's own."""
    *_, frame = traceback.extract_tb(error.__traceback__)
    return f"{os.path.basename(frame.filename)}, line {frame.lineno}"
