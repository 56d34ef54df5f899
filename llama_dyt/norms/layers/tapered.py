"""Norms on their way to Dynamic Tanh: both in one layer, and a gate between them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llama_dyt.norms.layers.dynamic_tanh import dynamic_tanh
from llama_dyt.norms.layers.layer_norm import LayerNorm
from llama_dyt.norms.layers.rms_norm import RMSNorm
from llama_dyt.norms.layers.unit_offset_rms_norm import UnitOffsetRMSNorm


class Tapered(nn.Module):
    """(1 - gate) * norm(x) + gate * DyT(x), in front of the norm's own class.

    Both are computed whatever the gate is, in fp32 (fp64 for fp64 input), and rounded once: at 0 it is the norm, at 1
    Dynamic Tanh, to the last bit, and every parameter has a gradient always.

    Args:
        hidden_size, eps: as of the norm.
        alpha_init, tanh_bias: as `alpha_init`, `bias` of `DynamicTanh`.

    Parameters: those of the norm, and Dynamic Tanh's as `tanh_alpha` (1,), `tanh_weight` (hidden_size,) starting at 1,
    `tanh_bias` (hidden_size,) or None.

    Attributes:
        gate: a scalar in fp32 on the CPU, whatever the model's device: neither parameter nor buffer, which would be
            cast, cut and saved. It is changed in place, between steps.
    """

    def __init__(self, hidden_size: int, eps: float, alpha_init: float = 0.5, tanh_bias: bool = False):
        super().__init__(hidden_size, eps)
        self.tanh_alpha = nn.Parameter(torch.full((1,), float(alpha_init)))
        self.tanh_weight = nn.Parameter(torch.ones(hidden_size))
        self.tanh_bias = nn.Parameter(torch.zeros(hidden_size)) if tanh_bias else None
        self.gate = torch.tensor(0.0, dtype=torch.float32, device="cpu")

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        norm = super().forward(wide)
        tanh = dynamic_tanh(wide, self.tanh_alpha, self.tanh_weight, self.tanh_bias)
        return ((1.0 - self.gate) * norm + self.gate * tanh).to(x.dtype)


class TaperedRMSNorm(Tapered, RMSNorm):
    """`RMSNorm` on its way."""


class TaperedUnitOffsetRMSNorm(Tapered, UnitOffsetRMSNorm):
    """`UnitOffsetRMSNorm` on its way."""


class TaperedLayerNorm(Tapered, LayerNorm):
    """`LayerNorm` on its way."""
