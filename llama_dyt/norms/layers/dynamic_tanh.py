"""Dynamic Tanh (DyT), the layer that stands where a LLaMA has RMSNorm.

`dynamic_tanh` is the one door to the computation: whatever computes it faster goes behind that function, and the layer,
the models and their names stay as they are. A copy of this file lies in every saved model's folder and must work there
alone: so the kernels are handed to it (`use_kernel`), it does not import them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

_suits: Callable[..., bool] | None = None
_kernel: Callable[..., Tensor] | None = None


def use_kernel(kernel: Callable[..., Tensor] | None, suits: Callable[..., bool] | None = None) -> None:
    """Let `dynamic_tanh` call `kernel` wherever `suits`, given the same arguments, is true; None: the formula."""
    global _kernel, _suits
    _kernel, _suits = kernel, suits


def dynamic_tanh(x: Tensor, alpha: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """weight * tanh(alpha * x) [+ bias], element by element (arXiv 2503.10622).

    Args:
        x: (..., hidden_size), any floating dtype.
        alpha: (1,), the learnable slope.
        weight: (hidden_size,).
        bias: (hidden_size,) or None.

    Returns:
        (..., hidden_size) in x's dtype. Everything between is computed in fp32 (fp64 for fp64 input), whatever the
        dtypes of x and of the parameters are: alpha * x rounded to bf16 would move a saturated tanh by whole steps.

    Raises:
        TypeError: x is of no floating dtype.
        ValueError: x's last dimension is not the weight's; one of 1 would be spread over all of it.
    """
    if not x.is_floating_point():
        raise TypeError(f"Dynamic Tanh takes floating-point activations, not {x.dtype}; convert them: x.float()")
    if x.shape[-1:] != weight.shape:
        raise ValueError(
            f"Dynamic Tanh over a last dimension of {tuple(weight.shape)} was given x of shape {tuple(x.shape)}; give "
            "x that many features, or build the layer with x's hidden_size"
        )
    if _kernel is not None and _suits(x, alpha, weight, bias):
        return _kernel(x, alpha, weight, bias)
    return dynamic_tanh_formula(x, alpha, weight, bias)


def dynamic_tanh_formula(x: Tensor, alpha: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`dynamic_tanh` by PyTorch's own operations, differentiable any number of times: what every kernel is held to."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    y = weight.to(dtype) * torch.tanh(alpha.to(dtype) * x.to(dtype))
    if bias is not None:
        y = y + bias.to(dtype)
    return y.to(x.dtype)


def scaled_tanh(x: Tensor, alpha: Tensor) -> Tensor:
    """tanh(alpha * x), element by element: Dynamic Tanh whose weight stands in the projections behind it.

    Args:
        x: of any shape and floating dtype.
        alpha: (1,).

    Returns:
        The same shape and dtype; computed as `dynamic_tanh` is.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (alpha.to(dtype) * x.to(dtype)).tanh_().to(x.dtype)


class DynamicTanh(nn.Module):
    """DyT over the last dimension of its input.

    Args:
        hidden_size: size of that dimension.
        alpha_init: starting value of alpha. The paper's LLaMA models start by width, see `alphas.default_alphas`.
        bias: add a learnable bias, starting at 0, as the vision models have; LLaMA has none.
        folded: weight and bias stand in the projections that read the output, and alpha alone is left.

    Parameters: `alpha` (1,), `weight` (hidden_size,) starting at 1, `bias` (hidden_size,) or None.
    """

    def __init__(self, hidden_size: int, alpha_init: float = 0.5, bias: bool = False, folded: bool = False):
        super().__init__()
        self.hidden_size = hidden_size
        self.alpha_init = alpha_init
        self.alpha = nn.Parameter(torch.empty(1))
        if folded:
            self.weight = self.bias = None
            self.reset_parameters()
            return
        self.weight = nn.Parameter(torch.empty(hidden_size))
        self.bias = nn.Parameter(torch.empty(hidden_size)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Put every parameter back to its starting value."""
        nn.init.constant_(self.alpha, self.alpha_init)
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None:
            return scaled_tanh(x, self.alpha)
        return dynamic_tanh(x, self.alpha, self.weight, self.bias)

    def extra_repr(self) -> str:
        folded = ", folded" if self.weight is None else ""
        return f"{self.hidden_size}, alpha_init={self.alpha_init}, bias={self.bias is not None}{folded}"
