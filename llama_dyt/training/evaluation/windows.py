"""A model's loss on tokens that are cut into windows: one after the other, sliding, or each document by itself.

The one place where text is scored: at the end of a run, and by eval_model.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch

from llama_dyt.data.loaders.step import IGNORE_INDEX


@dataclass(frozen=True)
class Window:
    """Tokens that a model sees at once.

    Attributes:
        tokens: int64.
        scored: the first of them whose prediction counts; it and all behind it.
    """

    tokens: np.ndarray
    scored: int = 1


@dataclass(frozen=True)
class Loss:
    """Summed over predictions, nats."""

    total: float = 0.0
    count: int = 0

    @property
    def mean(self) -> float:
        return self.total / self.count


def cut(tokens: np.ndarray, max_length: int, stride: int | None = None) -> Iterator[Window]:
    """Windows in which every token but the first is predicted exactly once.

    Args:
        stride: predictions of a window after the first, each of which then has max_length - stride tokens before it
            at least; None: max_length - 1, so that windows lie end to end.
    """
    stride = stride or max_length - 1
    stop = min(max_length, len(tokens))
    yield Window(tokens[:stop])
    while stop < len(tokens):
        before, stop = stop, min(stop + stride, len(tokens))
        start = max(0, before - (max_length - stride))
        yield Window(tokens[start:stop], before - start)


@torch.no_grad()
def loss_on(
    model: torch.nn.Module, windows: Sequence[Window], unscored: int | None = None, batch_size: int = 8
) -> Loss:
    """The model's loss on some windows.

    Args:
        unscored: an id whose prediction does not count: BOS, which is no part of the text.
        batch_size: windows of one length that are taken at once.
    """
    total, count = 0.0, 0
    for _, alike in groupby(windows, key=lambda window: len(window.tokens)):
        held = list(alike)
        for start in range(0, len(held), batch_size):
            batch = held[start : start + batch_size]
            ids = torch.stack([torch.from_numpy(window.tokens) for window in batch])
            labels = ids if unscored is None else ids.masked_fill(ids == unscored, IGNORE_INDEX)
            context = torch.tensor([window.scored for window in batch])[:, None] > torch.arange(ids.shape[1])
            labels = labels.masked_fill(context, IGNORE_INDEX)
            targets = int((labels[:, 1:] != IGNORE_INDEX).sum())
            if targets:
                device = next(model.parameters()).device
                inputs = {"input_ids": ids.to(device), "labels": labels.to(device)}
                total += targets * float(model(**inputs, use_cache=False).loss)
                count += targets
    return Loss(total, count)
