"""The records of a mixture's sources, one source after the other: what fine-tuning reads once and then shuffles."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.sources import TextSource


@dataclass(frozen=True)
class RepeatedSource:
    """One source, and how often each of its records comes in an epoch."""

    name: str
    data: TextSource
    times: int = 1


class MixedRecords(TextSource):
    """The records of several sources; it is walked from its start alone.

    Attributes:
        sources: in the order of the mixture.
    """

    def __init__(self, sources: Sequence[RepeatedSource]) -> None:
        self.sources = tuple(sources)
        self.fields = self.sources[0].data.fields
        self.is_local = all(source.data.is_local for source in self.sources)
        told = "\n".join(f"{source.name}\t{source.data.fingerprint}\t{source.times}" for source in self.sources)
        self.fingerprint = "mixture:" + hashlib.sha256(told.encode()).hexdigest()[:16]
        self.bad_lines = 0

    def iterate(self, position: dict | None = None) -> Iterator[tuple[tuple[Any, ...], dict]]:
        """As `TextSource.iterate`; the positions are of no use."""
        self.bad_lines = 0
        for source in self.sources:
            for turn in range(source.times):
                for values, _ in source.data.iterate():
                    yield values, {}
                if turn == 0:
                    self.bad_lines += source.data.bad_lines

    def problems(self) -> list[DataError]:
        return [problem for source in self.sources for problem in source.data.problems()]
