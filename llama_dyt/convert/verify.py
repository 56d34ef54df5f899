"""Whether a converted model says what its source says, on fixed tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llama_dyt.core.errors import CheckpointError

_LENGTH = 64
_SHARES = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""The difference that may be, as a share of the largest logit. Both sides have the same rounded weights and compute in
fp32, so the first holds for any dtype, but where weights were changed before they were rounded."""

Logits = Callable[[Tensor, torch.dtype], Tensor]


@dataclass(frozen=True)
class Comparison:
    """How far two models are from each other.

    Attributes:
        difference: the largest of two logits.
        largest: the largest logit, without its sign.
        share: what the difference may be of that.
        agreeing: share of positions whose likeliest token is the same.
    """

    difference: float
    largest: float
    share: float
    agreeing: float

    @property
    def fits(self) -> bool:
        return self.difference <= self.share * max(1.0, self.largest)

    def __str__(self) -> str:
        return (
            f"largest difference of logits {self.difference:.3g}, of logits up to {self.largest:.3g}; the likeliest "
            f"token agrees at {self.agreeing:.0%} of positions"
        )


def fixed_tokens(config: Any) -> Tensor:
    """(1, length) ids, the same for every model of one vocabulary."""
    length = min(_LENGTH, config.max_position_embeddings)
    return torch.randint(config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))


def compare(source: Logits, result: Logits, config: Any, dtype: torch.dtype, changed: bool) -> Comparison:
    """Ask both. One is gone before the other is loaded.

    Args:
        dtype: of the result, to which the source's weights are rounded too.
        changed: the weights are others than the source's, such as folded ones.

    Raises:
        CheckpointError: a model gives what is no number.
    """
    input_ids = fixed_tokens(config)
    expected = source(input_ids, dtype)
    found = result(input_ids, dtype)
    if not torch.isfinite(found).all() and torch.isfinite(expected).all():
        raise CheckpointError("--verify: the converted model gives what is no number, and its source does not")
    share = _SHARES[dtype] if changed else _SHARES[torch.float32]
    difference = (expected - found).abs().nan_to_num(0.0).amax().item()
    agreeing = (expected.argmax(-1) == found.argmax(-1)).float().mean().item()
    return Comparison(difference, expected.abs().nan_to_num(0.0).amax().item(), share, agreeing)
