"""How many tokens an expert takes of a call, and which: the places of GShard (Lepikhin et al., arXiv 2006.16668,
algorithm 1) and Switch (Fedus et al., arXiv 2101.03961, equation 3).

Tokens choose in rounds: all of them their first expert, then all their second, and so on; within a round they come in
the order of the batch, row after row. An expert takes those that come first and no more than its capacity. So who is
left out depends on nothing but the choices of one call, however experts are spread. A saved model carries this along.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor


def capacity_of(num_tokens: int, num_chosen: int, num_experts: int, factor: float) -> int:
    """Tokens that an expert takes of `num_tokens`, each of which chooses `num_chosen` experts: `factor` times an even
    share, rounded up."""
    # By the factor as it is written: in binary 1.1 times ten is more than eleven.
    return math.ceil(Fraction(repr(float(factor))) * num_chosen * num_tokens / num_experts)


def within_capacity(chosen: Tensor, num_experts: int, capacity: int) -> Tensor:
    """(tokens, k) bool: which choices have a place.

    Args:
        chosen: (tokens, k) int64, the experts of each token, the likeliest first.
    """
    by_round = chosen.t().flatten()
    order = by_round.argsort(stable=True)
    counts = torch.zeros(num_experts, dtype=torch.int64, device=chosen.device)
    counts.scatter_add_(0, by_round, torch.ones_like(by_round))
    first = counts.cumsum(0) - counts
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device) - first[by_round[order]]
    return (places < capacity).view(chosen.shape[1], chosen.shape[0]).t()
