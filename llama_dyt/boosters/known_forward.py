"""One forward pass over tokens that are always the same, and some of the logits that come of it, under any strategy.

A rank may have a part of the vocabulary, a slice of the positions, or neither: the logits are picked where the loss is
computed, the one place that every layout comes by, and added up over the ranks that have them.
"""

from __future__ import annotations

import llama_dyt.boosters.engine  # noqa: F401

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from llama_dyt.boosters.boosted import Boosted
from llama_dyt.models.ops.loss import IGNORE_INDEX, CausalLmLoss


@dataclass(frozen=True)
class KnownForward:
    """What to compute.

    Attributes:
        tokens: of one sequence.
        positions, entries: places in it, and in the vocabulary, whose logits are looked at.
    """

    tokens: Sequence[int]
    positions: Sequence[int]
    entries: Sequence[int]

    @torch.no_grad()
    def of(self, boosted: Boosted) -> tuple[float, list[list[float]]]:
        """(mean loss of the sequence in nats a token, logits by position and entry) by the present weights; collective.

        Like `Boosted.evaluate` it changes nothing: no weight, gradient or random generator. Compiled layers run as
        they were written, so nothing is compiled for it.
        """
        module, grid, run = boosted.module, boosted.grid, boosted.run
        # A pipeline's schedule is made for as many micro batches as a step has.
        rows = run.data.batch_size * run.optimizer.gradient_accumulation_steps if grid.pp_size > 1 else 1
        # Padding on the right, for slices of equal length, is unseen by what is before it.
        length = -(-len(self.tokens) // (grid.sp_size * grid.tp_size)) * grid.sp_size * grid.tp_size
        ids = torch.zeros(rows, length, dtype=torch.int64)
        ids[:, : len(self.tokens)] = torch.tensor(self.tokens)
        labels = ids.clone()
        labels[:, len(self.tokens) :] = IGNORE_INDEX
        num_label_tokens = (len(self.tokens) - 1) * rows * grid.dp_size
        batch = _Batch([{"input_ids": ids, "labels": labels}], num_label_tokens)
        loss = module.loss_function
        picking = _Picking(loss, self, first=grid.sp_rank * length // grid.sp_size, device=boosted.device)
        module.loss_function = picking
        try:
            with boosted.layers_as_written():
                share = boosted.evaluate(batch)
        finally:
            module.loss_function = loss
        found = torch.cat([share.to(picking.sums).reshape(1), picking.sums.flatten(), picking.counts.flatten()])
        dist.all_reduce(found)
        shape = picking.sums.shape
        logits = found[1 : 1 + shape.numel()] / found[1 + shape.numel() :]
        return float(found[0]), logits.view(shape).tolist()


@dataclass
class _Batch:
    micro_batches: list[dict[str, torch.Tensor]]
    num_label_tokens: int


class _Picking:
    """A model's loss that looks at the logits that it is given, of each micro batch's first sequence.

    Args:
        first: position in the sequence of the first that this rank has.
    """

    def __init__(self, loss: CausalLmLoss, wanted: KnownForward, first: int, device: torch.device) -> None:
        self._loss = loss
        self._wanted = wanted
        self._first = first
        self.sums = torch.zeros(len(wanted.positions), len(wanted.entries), dtype=torch.float64, device=device)
        self.counts = torch.zeros_like(self.sums)

    def takes(self, head: nn.Module) -> bool:
        """Never: with the head in the loss there would be no logits."""
        return False

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        begin, end = 0, logits.shape[-1]
        if self._loss.part is not None:
            begin, end = self._loss.part.first, self._loss.part.first + self._loss.part.rows
        for row, position in enumerate(self._wanted.positions):
            if 0 <= position - self._first < logits.shape[1]:
                own = [(column, entry) for column, entry in enumerate(self._wanted.entries) if begin <= entry < end]
                if own:
                    columns, entries = (list(numbers) for numbers in zip(*own, strict=True))
                    picked = logits[0, position - self._first, [entry - begin for entry in entries]]
                    self.sums[row, columns] += picked.to(self.sums)
                    self.counts[row, columns] += 1
        return self._loss(logits, labels, *rest, **more)
