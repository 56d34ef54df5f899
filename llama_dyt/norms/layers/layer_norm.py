"""Layer normalization (arXiv 1607.06450), under this project's rule about precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LayerNorm(nn.LayerNorm):
    """weight * (x - mean) / sqrt(variance + eps) + bias over the last dimension.

    Computed in fp32 (fp64 for fp64 input) and returned in x's dtype.

    Args:
        hidden_size: size of the last dimension.
        eps: added to the variance.

    Parameters: `weight` (hidden_size,), starting at 1, and `bias` (hidden_size,), starting at 0.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-5):
        super().__init__(hidden_size, eps=eps)
        self.hidden_size = hidden_size

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        return F.layer_norm(x.to(dtype), self.normalized_shape, weight, bias, self.eps).to(x.dtype)
