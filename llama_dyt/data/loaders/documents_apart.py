"""Documents kept apart within packed sequences: where each begins, and what the model is told of it.

It looks at finished batches alone, whatever loader packed them: an EOS ends a document, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NoReturn

import torch

from llama_dyt.data.loaders.step import IGNORE_INDEX, MicroBatch, Prefetcher, Step


def number_documents(input_ids: torch.Tensor, eos: int) -> torch.Tensor:
    """Which document of its row each token belongs to: (batch, length) int64, 0 for what a row begins with.

    A row that begins within a document counts what is left of it as one.
    """
    first = torch.zeros_like(input_ids)
    first[:, 1:] = input_ids[:, :-1] == eos
    return first.cumsum(1)


def positions_in_documents(document_ids: torch.Tensor) -> torch.Tensor:
    """Each token's place in its document, from 0, or from 0 in what its row has of it: (batch, length) int64."""
    places = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    starts = torch.where(_begins(document_ids), places, 0).cummax(1).values
    return places - starts


def _begins(document_ids: torch.Tensor) -> torch.Tensor:
    """Where a document begins that is not the first of its row."""
    begins = torch.zeros_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return begins


class DocumentsApart(Iterator[Step]):
    """The steps of a loader with documents apart, in one or both of two ways; closes the loader that it wraps.

    Micro batches get `document_ids`, within whose equal numbers attention stays, and `position_ids` where positions
    start anew. Where attention stays within documents, the first token of one is no target, for nothing of its document
    comes before it.

    Args:
        batches: a loader of packed text (`step.Prefetcher`).
        eos: what ends a document.
        reset_positions: positions start anew at each document (--reset_position_ids).
        reset_attention: attention stays within a document (--reset_attention_mask).
        start_sum: begins to add up a number of each data-parallel rank, and returns what waits for the sum; all of them
            call it once a step. How many targets the other ranks have can be known from their rows alone. It is
            called a step ahead, so that a step's sum is on its way while the one before it is trained on.
    """

    def __init__(
        self,
        batches: Prefetcher,
        eos: int,
        reset_positions: bool,
        reset_attention: bool,
        start_sum: Callable[[int], Callable[[], int]],
    ):
        self._batches = batches
        self._eos = eos
        self._reset_positions = reset_positions
        self._reset_attention = reset_attention
        self._start_sum = start_sum
        self._next: Callable[[], Step] | None = None

    def __next__(self) -> Step:
        if self._next is None:
            self._next = self._begin()
        step = self._next()
        self._next = self._begin()
        return step

    def _begin(self) -> Callable[[], Step]:
        """What gives the next step, or raises what kept it from being read, when its turn comes."""
        try:
            step = next(self._batches)
        except Exception as error:
            return partial(_raise, error)
        batches = [self._apart(micro_batch) for micro_batch in step.micro_batches]
        if not self._reset_attention:
            return lambda: replace(step, micro_batches=batches)
        own = sum(int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()) for batch in batches)
        labelled = self._start_sum(own)
        return lambda: replace(step, micro_batches=batches, num_label_tokens=max(labelled(), 1))

    def _apart(self, micro_batch: MicroBatch) -> MicroBatch:
        documents = number_documents(micro_batch["input_ids"], self._eos)
        told = dict(micro_batch)
        if self._reset_positions:
            told["position_ids"] = positions_in_documents(documents)
        if self._reset_attention:
            told["labels"] = micro_batch["labels"].masked_fill(_begins(documents), IGNORE_INDEX)
        # Said of positions alone too: by themselves the model would take them for documents apart.
        told["document_ids"] = documents if self._reset_attention else torch.zeros_like(documents)
        return told

    def ready(self, seconds: float) -> bool:
        """As a loader's: of the step after the next, which is begun with it."""
        return self._batches.ready(seconds)

    def close(self) -> None:
        self._batches.close()

    def __enter__(self) -> DocumentsApart:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def _raise(error: Exception) -> NoReturn:
    raise error
