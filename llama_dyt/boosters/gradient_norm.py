"""The global gradient norm in one pass over the gradients, in the engine's optimizers.

Its own file because Colossal-AI's `_compute_grad_norm` copies every gradient into fp64 first and takes its norm there:
on a CPU a second pass over twice the memory, on a GPU two kernels a parameter. Here all norms are taken at once, each
summed up in fp32 by torch, and only these are squared and added in fp64.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from colossalai.accelerator import get_accelerator
from colossalai.booster.plugin.hybrid_parallel_plugin import HybridParallelAMPOptimizer, HybridParallelNaiveOptimizer
from colossalai.zero import LowLevelZeroOptimizer


def take_gradient_norm_at_once(optimizer: Any) -> None:
    """Replace the norm of an engine optimizer, where no gradient is cut or shared by tensor or pipeline parallelism."""
    if isinstance(optimizer, HybridParallelNaiveOptimizer | HybridParallelAMPOptimizer):
        if optimizer.tp_size == optimizer.pp_size == 1:
            optimizer._compute_grad_norm = lambda pairs, norm_type=2: gradient_norm([grad for _, grad in pairs])
    elif type(optimizer) is LowLevelZeroOptimizer:
        optimizer._compute_grad_norm = lambda dp_pg, gradients, norm_type=2: gradient_norm(gradients, dp_pg)


def gradient_norm(gradients: list[torch.Tensor], groups: Any = ()) -> float:
    """The 2-norm of all gradients together.

    Args:
        gradients: of one device, any dtypes.
        groups: a process group or several, over whose ranks the gradients are spread.
    """
    if not gradients:
        return 0.0
    norms = torch.stack(torch._foreach_norm(gradients, 2, dtype=torch.float32))
    squares = norms.double().square().sum().to(get_accelerator().get_current_device())
    for group in groups if isinstance(groups, Iterable) else (groups,):
        dist.all_reduce(squares, group=group)
    return float(squares.sqrt())
