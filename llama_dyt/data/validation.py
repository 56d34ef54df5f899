"""The two sides of a run's data: what is trained on, and the named sets that are validated on and never learned from.

Its own file because both sides must be opened by one rule, or they would overlap.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_dyt.data.sources import Source, open_source
from llama_dyt.data.split import OneSide
from llama_dyt.errors import DataError


def open_training(
    dataset: str,
    fraction: float | None,
    fields: Sequence[str] = ("text",),
    *,
    task: str | None = None,
    skip_bad_lines: bool = False,
) -> Source:
    """What `-d` names, without the documents that are held out.

    Args:
        fraction: share of the documents to leave out (--validation_fraction); None for none.
        fields, task, skip_bad_lines: as for `sources.open_source`.
    """
    source = open_source(dataset, fields, task=task, skip_bad_lines=skip_bad_lines)
    return source if fraction is None else OneSide(source, fraction, held_out=False)


@dataclass(frozen=True)
class ValidationSet:
    """One named set of documents to validate on.

    Attributes:
        name: what its figures are called.
        dataset: as `-d` takes it.
        fraction: only that share of it which training leaves out; None for all of it.
    """

    name: str
    dataset: str
    fraction: float | None = None

    def open(
        self, fields: Sequence[str] = ("text",), *, task: str | None = None, skip_bad_lines: bool = False
    ) -> Source:
        source = open_source(self.dataset, fields, task=task, skip_bad_lines=skip_bad_lines)
        return source if self.fraction is None else OneSide(source, self.fraction, held_out=True)

    def check(
        self, fields: Sequence[str] = ("text",), *, task: str | None = None, skip_bad_lines: bool = False
    ) -> None:
        """Read up to the first document with text in it, which is enough to validate on.

        Raises:
            DataError: there is none, or what comes before it cannot be used.
        """
        source = self.open(fields, task=task, skip_bad_lines=skip_bad_lines)
        if any(all(values) for values, _ in source.iterate()):
            return
        if self.fraction is None:
            raise DataError(f"--validation_dataset {self.dataset}: no record with text in its {' and '.join(fields)}")
        raise DataError(
            f"--validation_fraction {self.fraction:g} holds out no document of {self.dataset}; give a larger share, or "
            "--validation_dataset"
        )

    def __str__(self) -> str:
        part = "" if self.fraction is None else f", the {self.fraction:.3g} of it that is held out"
        return f"{self.name} ({self.dataset}{part})"


def set_name(dataset: str) -> str:
    """A short name for a dataset's figures: a file's without its suffixes, or the last part of a hub name."""
    return re.sub(r"\W+", "_", Path(dataset).name.split(".")[0]).strip("_") or "validation"
