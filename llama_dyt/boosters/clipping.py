"""The gradient's norm, clipping by it and whether to update at all, decided where the gradient is.

Its own file because Colossal-AI's optimizers bring the norm to the host and decide there, so that the host waits for
the device in every step; copy each gradient into fp64 for it, one after the other; go over all gradients again to scale
them; and go on where the norm is nan. Here all norms are taken at once in fp32, only these are squared and added in
fp64, and Adam itself divides each gradient (`div_scale`) or leaves the update out (`found_inf`). Gemini is not among
them: its chunks come and go on the host's word (`gemini.ChunkedOptimizer`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from colossalai.accelerator import get_accelerator
from colossalai.amp.naive_amp.mixed_precision_optimizer import MixedPrecisionOptimizer
from colossalai.booster.plugin.hybrid_parallel_plugin import HybridParallelNaiveOptimizer
from colossalai.tensor.d_tensor.api import is_distributed_tensor
from colossalai.zero import LowLevelZeroOptimizer
from torch import nn


class Update:
    """What one optimizer step does with the gradient it has.

    Attributes:
        loss: of the step, on the device, where the host has not looked at it: unless it is finite no weight changes
            either. None: it has.
    """

    def __init__(self, max_norm: float) -> None:
        self.loss: torch.Tensor | None = None
        self._max_norm = max_norm

    def factors(self, norm: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
        """What `adam.hybrid_adam_step` is to be given.

        Args:
            norm: scalar, of the whole gradient, times `scale`.
            scale: of the loss.
        """
        # As `LowLevelZeroOptimizer._unscale_and_clip_grads` does: one division for the loss scale and the clipping.
        over = (norm / scale + 1e-6) / self._max_norm
        finite = torch.isfinite(norm)
        if self.loss is not None:
            finite = finite & torch.isfinite(self.loss)
        return {"div_scale": scale * over.clamp(min=1.0), "found_inf": ~finite}


def update_of(optimizer: Any, max_norm: float) -> Update | None:
    """Have an engine optimizer leave its step's decisions to the device.

    Args:
        optimizer: as the plugin boosted it, over a HybridAdam; changed.
        max_norm: bound of the global gradient norm.

    Returns:
        What decides them; None where the host does (Gemini).
    """
    if hasattr(optimizer, "update"):  # fsdp's does so itself
        return optimizer.update
    if isinstance(optimizer, LowLevelZeroOptimizer):
        return _zero(optimizer, Update(max_norm))
    if isinstance(optimizer, HybridParallelNaiveOptimizer | MixedPrecisionOptimizer):
        return _whole(optimizer, Update(max_norm))
    return None


def _whole(optimizer: Any, update: Update) -> Update:
    """Optimizers whose ranks hold whole gradients, but for tensor and pipeline parallelism."""
    set_factors = _adam_with_factors(optimizer)

    def compute_grad_norm(pairs: list[tuple[nn.Parameter, torch.Tensor]], norm_type: int = 2) -> torch.Tensor:
        parts = [(gradient, _share(optimizer, parameter)) for parameter, gradient in pairs]
        return squared_norm(parts, _model_groups(optimizer)).sqrt()

    def clip(norm: torch.Tensor) -> None:
        mixin = getattr(optimizer, "mixed_precision", None)
        set_factors(update.factors(norm, mixin.get_grad_div_scale() if mixin else 1.0))

    optimizer._compute_grad_norm = compute_grad_norm
    optimizer._unscale_and_clip_grads = optimizer._clip_grad_norm = clip  # the first in half precision
    return update


def _zero(optimizer: LowLevelZeroOptimizer, update: Update) -> Update:
    """ZeRO, which asks for a norm a parameter group, and squares and adds them up on the host."""
    set_factors = _adam_with_factors(optimizer)
    squares: list[torch.Tensor] = []
    parameters = {id(parameter): parameter for group in optimizer._working_param_groups.values() for parameter in group}

    def compute_grad_norm(dp_pg: Any, gradients: list[torch.Tensor], norm_type: int = 2) -> float:
        owners = [parameters[optimizer.get_param_id_for_grad(gradient)] for gradient in gradients]
        parts = [(gradient, _share(optimizer, owner)) for gradient, owner in zip(gradients, owners)]
        data_groups = dp_pg if isinstance(dp_pg, Iterable) else (dp_pg,)
        squares.append(squared_norm(parts, [*data_groups, *_model_groups(optimizer)]))
        return 0.0

    def unscale_and_clip(gradients: list[torch.Tensor], norm: float) -> None:
        optimizer._current_grad_norm = torch.stack(squares).sum().sqrt()
        squares.clear()
        mixin = optimizer.mixed_precision_mixin
        set_factors(update.factors(optimizer._current_grad_norm, mixin.get_grad_div_scale() if mixin else 1.0))

    optimizer._compute_grad_norm = compute_grad_norm
    optimizer._unscale_and_clip_grads = unscale_and_clip
    return update


def _adam_with_factors(optimizer: Any) -> Callable[[dict[str, torch.Tensor]], None]:
    """Give the Adam inside of an optimizer what the returned function was last given, at each step."""
    adam = optimizer.optim
    step, factors = adam.step, {}
    adam.step = lambda closure=None: step(closure, **factors)
    return factors.update


def _model_groups(optimizer: Any) -> list[dist.ProcessGroup]:
    """The groups over whose ranks tensor and pipeline parallelism spread the model."""
    groups = (getattr(optimizer, name, None) for name in ("tp_pg", "pp_pg"))
    return [group for group in groups if group is not None and dist.get_world_size(group) > 1]


def _share(optimizer: Any, parameter: nn.Parameter) -> float:
    """How much of a gradient's square this rank puts into the sum over `_model_groups`, where others have it too."""
    share = 1.0
    tensor_group = getattr(optimizer, "tp_pg", None)
    if tensor_group is not None and not is_distributed_tensor(parameter):
        share /= dist.get_world_size(tensor_group)
    for stages in getattr(optimizer, "shared_params", ()):  # a head tied to the embedding
        if any(parameter is shared for shared in stages.values()):
            share /= len(stages)
    return share


def squared_norm(parts: Iterable[tuple[torch.Tensor, float]], groups: Iterable[dist.ProcessGroup]) -> torch.Tensor:
    """The square of the 2-norm of all gradients together, an fp64 scalar on the compute device. Collective.

    Args:
        parts: gradients of one device and any dtypes, each with the share of its square that this rank puts in.
        groups: over whose ranks the gradients are spread.
    """
    by_share: dict[float, list[torch.Tensor]] = {}
    for gradient, share in parts:
        by_share.setdefault(share, []).append(gradient)
    device = get_accelerator().get_current_device()
    squares = torch.zeros((), dtype=torch.float64, device=device)
    for share, gradients in by_share.items():
        norms = torch.stack(torch._foreach_norm(gradients, 2, dtype=torch.float32))
        squares += share * norms.double().square().sum().to(device)
    for group in groups:
        dist.all_reduce(squares, group=group)
    return squares
