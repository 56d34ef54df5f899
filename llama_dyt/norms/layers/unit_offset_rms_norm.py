"""The root mean square norm of Gemma, whose weight is stored less 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class UnitOffsetRMSNorm(nn.Module):
    """(1 + weight) * x / sqrt(mean(x^2) + eps) over the last dimension.

    Computed in fp32 (fp64 for fp64 input) and returned in x's dtype, as transformers' GemmaRMSNorm does. Weight decay
    pulls it to a factor of 1, where it pulls RMSNorm's to 0.

    Args:
        hidden_size: size of the last dimension.
        eps: added to the mean square.

    Parameters: `weight` (hidden_size,), starting at 0.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.hidden_size = hidden_size
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        wide = x.to(dtype)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (wide * (1.0 + self.weight.to(dtype))).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.hidden_size}, eps={self.eps}"
