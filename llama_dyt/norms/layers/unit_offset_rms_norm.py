"""The root mean square norm of Gemma, whose weight is stored less 1."""

from __future__ import annotations

import torch
from torch import Tensor

from llama_dyt.norms.layers.rms_norm import RMSNorm


class UnitOffsetRMSNorm(RMSNorm):
    """(1 + weight) * x / sqrt(mean(x^2) + eps) over the last dimension, otherwise as `RMSNorm`.

    Weight decay pulls it to a factor of 1, where it pulls RMSNorm's to 0.

    Parameters: `weight` (hidden_size,), starting at 0.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-6):
        super().__init__(hidden_size, eps)
        torch.nn.init.zeros_(self.weight)

    def factor(self, dtype: torch.dtype) -> Tensor:
        return 1.0 + super().factor(dtype)
