"""Rotary positions turn pairs of a head's numbers. Meta's and fms' code pairs neighbours (0 with 1), HuggingFace's and
GPT-NeoX' pairs halves (0 with d/2): the rows of queries and keys stand in another order, and nothing else differs.
"""

from __future__ import annotations

from torch import Tensor


def halves_from_neighbours(rows: Tensor, head_dim: int) -> Tensor:
    """(heads * head_dim, …) rows in the order of Meta's code to that of HuggingFace's."""
    by_head = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return by_head.transpose(1, 2).reshape(rows.shape)


def neighbours_from_halves(rows: Tensor, head_dim: int) -> Tensor:
    """The other way."""
    by_head = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return by_head.transpose(1, 2).reshape(rows.shape)
