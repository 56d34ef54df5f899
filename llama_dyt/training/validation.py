"""Validation in the course of a run: the same batches each time, and their loss over all ranks by the present weights.

Its own file because it is the one thing a run does with text that it does not learn from. A finished checkpoint is
scored by `evaluation.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice

from llama_dyt.boosters.boosted import Boosted, sum_over_ranks
from llama_dyt.data.sources import Source
from llama_dyt.data.step import Step
from llama_dyt.data.validation import ValidationSet
from llama_dyt.errors import DataError

_LARGEST_EXPONENT = 700.0  # exp of more is no float


@dataclass(frozen=True)
class Figures:
    """What came of one set.

    Attributes:
        loss: mean over all label tokens of all ranks, nats a token.
        num_tokens: how many those are.
    """

    loss: float
    num_tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, _LARGEST_EXPONENT))


@dataclass(frozen=True)
class Validation:
    """The validation sets of a run, in this rank's memory: 16 bytes a token of its own rows, 32 with documents apart.

    Attributes:
        interval: steps between validations.
        sets: name → global batches, of which this rank has its rows.
    """

    interval: int
    sets: Mapping[str, Sequence[Step]]

    def measure(self, boosted: Boosted, stop_asked: Callable[[], bool]) -> dict[str, Figures] | None:
        """The figures of every set; None when a rank was asked to stop meanwhile. Collective.

        Args:
            stop_asked: whether this rank was; looked at after every batch, and all ranks stop together.
        """
        figures = {}
        for name, steps in self.sets.items():
            total, count = 0.0, 0
            for step in steps:
                loss, stops = sum_over_ranks([boosted.evaluate(step), float(stop_asked())], boosted.device)
                if stops:
                    return None
                total += loss * step.num_label_tokens
                count += step.num_label_tokens
            figures[name] = Figures(total / count, count)
        return figures


def read_sets(
    sets: Sequence[ValidationSet],
    num_batches: int,
    open_source: Callable[[ValidationSet], Source],
    make_batches: Callable[[Source], AbstractContextManager[Iterator[Step]]],
) -> dict[str, list[Step]]:
    """The first global batches of every set, read once.

    Args:
        num_batches: how many; all there are of a set that has fewer, the last filled up with rows without loss.
        open_source: opens a set.
        make_batches: the loader of a source for this rank, one epoch long.

    Raises:
        DataError: what a set holds cannot be used.
    """
    read = {}
    for chosen in sets:
        with make_batches(open_source(chosen)) as batches:
            read[chosen.name] = list(islice(batches, num_batches))
        if not read[chosen.name]:
            raise DataError(f"validation set {chosen}: not one token to predict; give one with more text")
    return read
