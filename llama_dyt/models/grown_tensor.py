"""A vocabulary with more rows than were trained: what a token that is added to a tokenizer begins as."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

_ROWS = 8192


class GrownTensor:
    """A stored tensor with rows added behind its own, each the mean of these: a new token is none in particular.

    A row drawn at random would give the token a probability that the model never learned to take away; with the mean it
    starts as likely as the average token (Hewitt 2021, "Initializing new word embeddings for pretrained language
    models").

    Args:
        stored: indexed by slices, gives fp32 tensors on the host.
        shape: of what is stored.
        rows: how many there are to be.
    """

    def __init__(self, stored: Any, shape: tuple[int, ...], rows: int) -> None:
        self._stored, self._shape, self._rows = stored, shape, rows

    def __getitem__(self, index: slice | tuple[slice, ...]) -> torch.Tensor:
        rows, *others = index if isinstance(index, tuple) else (index,)
        first, last, _ = rows.indices(self._rows)
        last = max(first, last)
        old = self._stored[(slice(min(first, self._shape[0]), min(last, self._shape[0])), *others)]
        added = last - max(first, self._shape[0])
        if added <= 0:
            return old
        new = self._mean.expand(added, *self._shape[1:])[(slice(None), *others)]
        return torch.cat((old, new))

    @cached_property
    def _mean(self) -> torch.Tensor:
        """(1, …), read in pieces."""
        total = torch.zeros((1, *self._shape[1:]), dtype=torch.float64)
        for begin in range(0, self._shape[0], _ROWS):
            total += self._stored[begin : begin + _ROWS].sum(0, dtype=torch.float64, keepdim=True)
        return (total / self._shape[0]).float()
