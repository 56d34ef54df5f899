"""Linear layers whose matrix products are of 8-bit floats, forward and backward, with scales found anew each time.

This file alone knows the two formats. The engine's own `use_fp8` serves the plugins with
tensor parallelism alone and torchao swaps modules; here a linear layer keeps its class hierarchy, its parameters and
their names, so that boosters, checkpoints and compilation see what they always see.

    tensorwise  one scale a tensor; inputs and weights in e4m3, gradients in e5m2
    rowwise     a scale for each row of either side of a product, all in e4m3: closer, a little slower

The head, the embedding, attention's own products and everything elementwise stay in the working precision, and so do as
many of the first and last decoder layers as are asked for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.models.spec import family_of

CAPABILITY = (8, 9)
"""The first compute capability with 8-bit tensor cores (Ada; Hopper is 9.0)."""
MULTIPLE = 16
"""What both sides of a weight, and the tokens of a gradient's product, must be a multiple of."""
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
_TINY = 1e-12


class Float8Linear(nn.Linear):
    """A linear layer with 8-bit products; made of an existing one by `use_float8`.

    Attributes:
        rowwise: a scale a row, else one a tensor.
        emulate: round to 8 bits and multiply in fp32, on any device; else the GPU's 8-bit units.
    """

    rowwise: bool
    emulate: bool

    def forward(self, input: Tensor) -> Tensor:
        rows = input.reshape(-1, input.shape[-1])
        out = _Float8Product.apply(rows, self.weight, self.rowwise, self.emulate).view(*input.shape[:-1], -1)
        return out if self.bias is None else out + self.bias

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {'rowwise' if self.rowwise else 'tensorwise'}"


def use_float8(model: nn.Module, scaling: str, emulate: bool = False, keep: int = 0) -> int:
    """Turn the linear layers of a causal LM's decoder layers into Float8Linear, in place; before it is boosted.

    Args:
        model: on any device, meta too.
        scaling: "tensorwise" or "rowwise".
        emulate: see `Float8Linear`.
        keep: so many decoder layers at each end keep their precision.

    Returns:
        How many linear layers it were.

    Raises:
        ConfigurationError: no layer is left, or, not emulated, the side of a weight is no multiple of 16.
    """
    layers = list(family_of(model.config).layers_of(model))
    chosen = layers[keep : len(layers) - keep]
    if not chosen:
        raise ConfigurationError(f"--fp8_keep_layers {keep}: of {len(layers)} layers none is left; give less")
    count = 0
    for layer in chosen:
        for name, module in layer.named_modules():
            if type(module) is not nn.Linear:
                continue
            if not emulate and (module.in_features % MULTIPLE or module.out_features % MULTIPLE):
                raise ConfigurationError(
                    f"--fp8: {name} is {module.in_features} by {module.out_features}, and 8-bit products need "
                    f"multiples of {MULTIPLE}; change the model's widths, or leave the flag out"
                )
            module.__class__ = Float8Linear
            module.rowwise, module.emulate = scaling == "rowwise", emulate
            count += 1
    return count


def why_no_float8() -> str | None:
    """Why this machine's GPUs have no 8-bit products, or None."""
    if not torch.cuda.is_available():
        return "torch shows no CUDA device here"
    if torch.version.hip is None and torch.cuda.get_device_capability() < CAPABILITY:
        major, minor = torch.cuda.get_device_capability()
        return f"{torch.cuda.get_device_name()} has compute capability {major}.{minor}; 8-bit products begin at 8.9"
    return None


class _Float8Product(torch.autograd.Function):
    """rows @ weight.T, and its two gradients, each a product of 8-bit operands.

    What is kept for the backward pass is what a linear layer in the working precision keeps. The weight is kept as the
    parameter it is, since `fully_shard` frees and gathers the memory behind it.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, rowwise: bool, emulate: bool) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.rowwise, ctx.emulate = rowwise, emulate
        return _product(rows, weight, E4M3, rowwise, emulate, fast=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        rows, weight = ctx.saved_tensors
        rowwise, emulate = ctx.rowwise, ctx.emulate
        format = E4M3 if rowwise else E5M2
        to_rows = to_weight = None
        if ctx.needs_input_grad[0]:
            to_rows = _product(gradient, weight.t(), format, rowwise, emulate)
        if ctx.needs_input_grad[1]:
            padding = -len(rows) % MULTIPLE
            rows, gradient = (F.pad(side, (0, 0, 0, padding)) if padding else side for side in (rows, gradient))
            to_weight = _product(gradient.t(), rows.t(), format, rowwise, emulate)
        return to_rows, to_weight, None, None


def _product(left: Tensor, right: Tensor, format: torch.dtype, rowwise: bool, emulate: bool, fast: bool = False):
    """left (m, k) @ right (n, k).T with both rounded to 8 bits, in left's precision.

    Args:
        format: of `left`; `right` is e4m3.
        fast: sums of products may be kept in less than fp32 on the way, which forward passes bear.
    """
    left_8, left_scale = _round(left, format, rowwise)
    right_8, right_scale = _round(right, E4M3, rowwise)
    if emulate:
        return ((left_8.float() * left_scale) @ (right_8.float() * right_scale).t()).to(left.dtype)
    return torch._scaled_mm(
        left_8.contiguous(),
        right_8.contiguous().t(),
        scale_a=left_scale,
        scale_b=right_scale.t().contiguous() if rowwise else right_scale,
        out_dtype=left.dtype,
        use_fast_accum=fast,
    )


def _round(values: Tensor, format: torch.dtype, rowwise: bool) -> tuple[Tensor, Tensor]:
    """(values in 8 bits, what to multiply them with, fp32): the largest becomes the largest the format has."""
    magnitude = values.abs()
    largest = magnitude.amax(dim=-1, keepdim=True) if rowwise else magnitude.amax()
    limit = torch.finfo(format).max
    scale = largest.float().clamp(min=_TINY) / limit
    return (values.float() / scale).clamp(-limit, limit).to(format), scale
