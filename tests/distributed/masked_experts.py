"""Experts in the plainest form there is: each computes every token, and a mask says what of it counts.

No token is sorted, grouped or sent anywhere, and who has a place at an expert is counted one token after the other, so
that nothing is shared with what it judges but the weights and the router's product.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Together:
    """Which tokens of a batch contend for the places of an expert: those of some rows, in one slice of the sequences.

    Attributes:
        micro_batches: the rows of each; those of a rank follow each other.
        ranks: among which the rows of each are divided.
        slices: of equal length, that each sequence is cut into.
    """

    micro_batches: tuple[tuple[int, ...], ...]
    ranks: int = 1
    slices: int = 1

    def places(self, length: int) -> Iterator[tuple[list[int], slice]]:
        """Rows and positions of each group, all tokens of the batch between them."""
        width = length // self.slices
        for rows in self.micro_batches:
            share = len(rows) // self.ranks
            for first in range(0, len(rows), share):
                for begin in range(0, length, width):
                    yield list(rows[first : first + share]), slice(begin, begin + width)


@contextmanager
def masked(model: nn.Module, together: Together) -> Iterator[list[int]]:
    """Have all layers of a Mixtral compute in this form; gives a list to which each adds how many choices it dropped.

    Args:
        together: in rows of what the model is called with.
    """
    dropped: list[int] = []
    config = model.config
    blocks = [layer.mlp for layer in model.model.layers]
    for block in blocks:
        block.forward = _Masked(block, config.num_experts_per_tok, config.expert_capacity_factor, together, dropped)
    yield dropped
    for block in blocks:
        del block.forward


class _Masked:
    def __init__(self, block: nn.Module, k: int, factor: float | None, together: Together, dropped: list[int]) -> None:
        self.block, self.k, self.factor, self.together, self.dropped = block, k, factor, together, dropped

    def __call__(self, hidden_states: torch.Tensor, *_: object) -> torch.Tensor:
        logits = self.block.gate(hidden_states.flatten(0, 1)).view(*hidden_states.shape[:2], -1)
        outputs = torch.zeros_like(hidden_states)
        for rows, positions in self.together.places(hidden_states.shape[1]):
            tokens = hidden_states[rows, positions].flatten(0, 1)
            shares = self._shares(logits[rows, positions].flatten(0, 1))
            counted = sum(
                share[:, None] * self._expert(number, tokens) for number, share in enumerate(shares.unbind(1))
            )
            outputs[rows, positions] = counted.view(len(rows), -1, tokens.shape[1]).to(hidden_states.dtype)
        return outputs

    def _shares(self, logits: torch.Tensor) -> torch.Tensor:
        """(tokens, experts): the weight that each expert's output has for each token."""
        num_tokens, num_experts = logits.shape
        weights, chosen = logits.softmax(-1).topk(self.k, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        places = math.inf
        if self.factor is not None:
            places = math.ceil(round(self.factor * self.k * num_tokens / num_experts, 6))
        taken, mask = [0] * num_experts, torch.zeros(num_tokens, self.k)
        for choice in range(self.k):
            for token, expert in enumerate(chosen[:, choice].tolist()):
                if taken[expert] < places:
                    taken[expert] += 1
                    mask[token, choice] = 1.0
        self.dropped.append(mask.numel() - int(mask.sum()))
        return torch.zeros_like(logits).scatter(1, chosen, weights * mask)

    def _expert(self, number: int, tokens: torch.Tensor) -> torch.Tensor:
        experts = self.block.experts
        gate, up = F.linear(tokens, experts.gate_up_proj[number]).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, experts.down_proj[number])
