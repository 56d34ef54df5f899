"""The engine's ZeRO with its step's decisions left to the device (`boosters/clipping.py`)."""

from __future__ import annotations

from llama_dyt.boosters.engine.upstream import replace

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from colossalai.zero import LowLevelZeroOptimizer
from torch import nn

from llama_dyt.boosters.clipping import Update, adam_with_factors, model_groups, share_of_square, squared_norm
from llama_dyt.boosters.grid import Grid


def leave_to_device(
    optimizer: LowLevelZeroOptimizer, max_norm: float, grid: Grid, shared: Sequence[Mapping[int, nn.Parameter]] = ()
) -> Update:
    """Upstream asks for a norm a parameter group, and squares and adds them up on the host.

    Args:
        optimizer: over a HybridAdam; changed.
        max_norm: bound of the global gradient norm.
        shared: see `share_of_square`.
    """
    update = Update(max_norm)
    set_factors = adam_with_factors(optimizer.optim)
    squares: list[torch.Tensor] = []
    parameters = {id(parameter): parameter for group in optimizer._working_param_groups.values() for parameter in group}

    def compute_grad_norm(dp_pg: Any, gradients: list[torch.Tensor], norm_type: int = 2) -> float:
        owners = [parameters[optimizer.get_param_id_for_grad(gradient)] for gradient in gradients]
        parts = [(gradient, share_of_square(owner, grid, shared)) for gradient, owner in zip(gradients, owners)]
        data_groups = dp_pg if isinstance(dp_pg, Iterable) else (dp_pg,)
        if grid.experts is not None:  # slices of experts are spread over all of them too
            data_groups = (grid.experts.data,)
        squares.append(squared_norm(parts, [*data_groups, *model_groups(grid)]))
        return 0.0

    def unscale_and_clip(gradients: list[torch.Tensor], norm: float) -> None:
        optimizer._current_grad_norm = torch.stack(squares).sum().sqrt()
        squares.clear()
        mixin = optimizer.mixed_precision_mixin
        set_factors(update.factors(optimizer._current_grad_norm, mixin.get_grad_div_scale() if mixin else 1.0))

    replace(optimizer, "_compute_grad_norm", compute_grad_norm)
    replace(optimizer, "_unscale_and_clip_grads", unscale_and_clip)
    return update
