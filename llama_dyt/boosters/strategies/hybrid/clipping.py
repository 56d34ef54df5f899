"""The hybrid plugin's optimizers without ZeRO, with their step's decisions left to the device."""

from __future__ import annotations

from llama_dyt.boosters.engine.upstream import replace

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from llama_dyt.boosters.clipping import Update, adam_with_factors, model_groups, share_of_square, squared_norm
from llama_dyt.boosters.expert_parallel import groups_of
from llama_dyt.boosters.grid import Grid


def leave_to_device(
    optimizer: Any, max_norm: float, grid: Grid, clips: str, scale: Callable[[], float] = lambda: 1.0
) -> Update:
    """Every rank holds whole gradients, but for tensor and pipeline parallelism.

    Args:
        optimizer: over a HybridAdam; changed.
        max_norm: bound of the global gradient norm.
        clips: the method that upstream calls with the norm.
        scale: that gradients carry, when they are divided by it.
    """
    update = Update(max_norm)
    set_factors = adam_with_factors(optimizer.optim)

    def compute_grad_norm(pairs: list[tuple[nn.Parameter, torch.Tensor]], norm_type: int = 2) -> torch.Tensor:
        shared = optimizer.shared_params
        whole, spread = [], []
        for parameter, gradient in pairs:
            groups = groups_of(parameter)
            share = share_of_square(parameter, grid, shared)
            if groups is None:
                whole.append((gradient, share))
            else:
                spread.append((gradient, share / groups.num_copies))
        squares = squared_norm(whole, model_groups(grid))
        if grid.experts is not None:
            squares += squared_norm(spread, [grid.experts.data, *model_groups(grid)])
        return squares.sqrt()

    def clip(norm: torch.Tensor) -> None:
        set_factors(update.factors(norm, scale()))

    replace(optimizer, "_compute_grad_norm", compute_grad_norm)
    replace(optimizer, clips, clip)
    return update
