"""Root mean square norm, the baseline that DyT is measured against.

The plain model takes it from the same registry, with the same rule about precision.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension (arXiv 1910.07467).

    Computed in fp32 (fp64 for fp64 input) and returned in x's dtype. In fp32 this is transformers' LlamaRMSNorm to
    the last bit; in half precision that one rounds before multiplying by the weight, this one after.

    Args:
        hidden_size: size of the last dimension.
        eps: added to the mean square.

    Parameters: `weight` (hidden_size,), starting at 1.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.hidden_size = hidden_size
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        wide = x.to(dtype)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (self.factor(dtype) * wide).to(x.dtype)

    def factor(self, dtype: torch.dtype) -> Tensor:
        """What each channel is multiplied by, (hidden_size,) in `dtype`."""
        return self.weight.to(dtype)

    def extra_repr(self) -> str:
        return f"{self.hidden_size}, eps={self.eps}"
