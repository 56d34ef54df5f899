"""How evenly routers choose: what is counted of a pass through the layers, and the losses made of it.

Both losses are of one micro batch over all ranks that see other tokens and over all layers together, as transformers
computes the first of them (`load_balancing_loss_func`; Fedus et al., arXiv 2101.03961, equations 4 to 6):

    balance = E · Σ_e f_e · P_e     f_e: choices of expert e by rows, P_e: its mean probability
    z       = mean of logsumexp(logits)²     (Zoph et al., arXiv 2202.08906, equation 5)

The first couples layers, and with them the stages of a pipeline: f_e is of all of them. But it has no gradient, and a
layer's own gradient needs nothing else. So what is counted is sent off when the last layer has run, one small sum over
the ranks, and is asked for where the backward pass comes by (`models.ops.auxiliary_loss` says why there). The loss that
is logged stays the cross entropy alone. A saved model carries this along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Callable[[], None]]
"""Begins to sum a tensor in place over the ranks → what waits for the sum."""


@dataclass(frozen=True)
class RoutingTotals:
    """What the routers did with one micro batch, over all ranks.

    Attributes:
        choices: (layers, experts), how often each was chosen, whether or not it had a place.
        probabilities: (layers, experts), sums over tokens.
        rows: (layers,), tokens.
        entropies, squares: (layers,), sums over tokens of the entropy of the probabilities, in nats, and of
            logsumexp(logits)².
        dropped: (layers,), choices beyond an expert's capacity.
    """

    choices: Tensor
    probabilities: Tensor
    rows: Tensor
    entropies: Tensor
    squares: Tensor
    dropped: Tensor

    @property
    def balance(self) -> Tensor:
        """The balancing loss; as many as are chosen of the experts where all are chosen alike."""
        rows = self.rows.sum()
        frequency, probability = self.choices.sum(0) / rows, self.probabilities.sum(0) / rows
        return len(frequency) * (frequency * probability).sum()

    @property
    def z(self) -> Tensor:
        return self.squares.sum() / self.rows.sum()


class RoutingPass:
    """One micro batch on its way through the layers that this process has."""

    def __init__(self, board: RoutingBoard, mask: Tensor | None) -> None:
        self.board = board
        self.mask = mask
        self.begun: set[int] = set()
        self._sums: Tensor | None = None
        self._sent = False
        self._wait: Callable[[], None] | None = None

    def balanced(self, logits: Tensor, weight: float) -> Tensor:
        """The logits as they are; backward adds the gradient of the two losses.

        Args:
            logits: (tokens, experts) fp32.
            weight: the layer's `auxiliary_weight`.
        """
        return _Balanced.apply(logits, self, weight)

    @torch.no_grad()
    def count(self, layer: int, logits: Tensor, chosen: Tensor, kept: Tensor | None = None) -> None:
        """Note what a layer chose. A layer that runs again in the backward pass finds it noted.

        Args:
            chosen: (tokens, k) int64.
            kept: (tokens, k) bool, which of them are within capacity; None: all.
        """
        if self._sent:
            return
        experts = logits.shape[1]
        if self._sums is None:
            self._sums = torch.zeros(self.board.num_layers, 2 * experts + 4, dtype=torch.float64, device=logits.device)
        rows = self.rows_kept(logits)
        probabilities, normalizers = logits.softmax(-1), logits.logsumexp(-1)
        choices = torch.zeros(experts, dtype=torch.float64, device=logits.device)
        choices.scatter_add_(0, chosen.flatten(), rows.repeat_interleave(chosen.shape[1]))
        own = self._sums[layer]
        own[:experts] = choices
        own[experts : 2 * experts] = (probabilities * rows[:, None]).sum(0)
        own[-4] = rows.sum()
        own[-3] = ((normalizers - (probabilities * logits).sum(-1)) * rows).sum()
        own[-2] = (normalizers.square() * rows).sum()
        own[-1] = 0 if kept is None else (~kept * rows[:, None]).sum()

    def rows_kept(self, logits: Tensor) -> Tensor:
        """(tokens,) fp64: 0 at padding, else 1."""
        if self.mask is None:
            return torch.ones(len(logits), dtype=torch.float64, device=logits.device)
        return self.mask.reshape(-1).to(logits.device, torch.float64)

    def send(self) -> None:
        """All layers of this process have run: begin to sum over the ranks."""
        self._sent = True
        if self._sums is not None and self.board.reduce is not None:
            self._wait = self.board.reduce(self._sums)

    def totals(self) -> RoutingTotals:
        """Of all ranks; waits for their sum."""
        if not self._sent:
            self.send()
        if self._wait is not None:
            self._wait()
            self._wait = None
        experts = (self._sums.shape[1] - 4) // 2
        parts = self._sums.split((experts, experts, 1, 1, 1, 1), dim=1)
        return RoutingTotals(parts[0], parts[1], *(part[:, 0] for part in parts[2:]))


class RoutingBoard:
    """Where the passes of a model's decoder are kept while they need each other.

    Args:
        num_layers: of the whole model.
        balance, z: coefficients of the two losses.
        limited: experts have a capacity, so that some choices may be dropped.

    Attributes, of how the model is spread:
        reduce: sums over all ranks; None: there is one process.
        copies: how many ranks' tokens a gradient is averaged over, times those that have the same tokens.
        alike: how many ranks count the same tokens.
        chunks: runs of layers that this process has, through which a micro batch goes one after the other.
        passes: those of the step so far, oldest first.
    """

    def __init__(self, num_layers: int, balance: float, z: float, limited: bool = False) -> None:
        self.num_layers = num_layers
        self.limited = limited
        self.balance, self.z = balance, z
        self.reduce: Reduce | None = None
        self.copies = 1
        self.alike = 1
        self.chunks = 1
        self.passes: list[RoutingPass] = []
        self._open: list[RoutingPass] = []

    def begin_step(self) -> None:
        """Forget what was before."""
        self.passes, self._open = [], []

    @contextmanager
    def through_layers(self, first_layer: int, mask: Tensor | None) -> Iterator[RoutingPass | None]:
        """One pass through a run of layers; None where nothing will be learned.

        Args:
            first_layer: tells the runs apart. Micro batches come through each in the same order.
            mask: (batch, length), 0 at padding.
        """
        if not torch.is_grad_enabled():
            yield None
            return
        routed = next((routed for routed in self._open if first_layer not in routed.begun), None)
        if routed is None:
            routed = RoutingPass(self, mask)
            self._open.append(routed)
            if self.reduce is None:
                self.passes = [routed]  # nobody begins steps: the last one is kept
            else:
                self.passes.append(routed)
        routed.begun.add(first_layer)
        yield routed
        if len(routed.begun) == self.chunks:
            self._open.remove(routed)
            routed.send()


class _Balanced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, routed: RoutingPass, weight: float) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.routed, ctx.weight = routed, weight
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (logits,) = ctx.saved_tensors
        board, totals = ctx.routed.board, ctx.routed.totals()
        rows = totals.rows.sum()
        frequency = (totals.choices.sum(0) / rows).to(logits.dtype)
        probabilities = logits.softmax(-1)
        of_probabilities = board.balance * len(frequency) * frequency
        along = probabilities @ of_probabilities
        of_logits = probabilities * (of_probabilities - along[:, None])
        of_logits += board.z * 2 * logits.logsumexp(-1, keepdim=True) * probabilities
        scale = ctx.routed.rows_kept(logits) * (ctx.weight * board.copies / rows)
        return gradient + of_logits * scale[:, None].to(logits.dtype), None, None
