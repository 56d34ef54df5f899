"""The gradient's norm, clipping by it and whether to update at all, decided where the gradient is.

Colossal-AI's optimizers bring the norm to the host and decide there, so that the host waits for the device in every
step; copy each gradient into fp64 for it, one after the other; go over all gradients again to scale them; and go on
where the norm is nan. Here squares are added up where the gradients are (`squares.py`), and Adam itself divides each
gradient (`div_scale`) or leaves the update out (`found_inf`). Each strategy has its optimizer ask here, but for Gemini,
whose chunks come and go on the host's word.
"""

from __future__ import annotations

import llama_dyt.boosters.engine  # noqa: F401

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from colossalai.accelerator import get_accelerator
from colossalai.tensor.d_tensor.api import is_distributed_tensor
from torch import nn

from llama_dyt.boosters.grid import Grid
from llama_dyt.boosters.squares import sum_of_squares
from llama_dyt.config.run import RunConfig

NO_CLIPPING = 1e30
"""Bound passed when clipping is off: hybrid and Gemini optimizers compute a grad norm only under a bound."""


def norm_bound(run: RunConfig) -> float:
    """The clipping bound to hand to the engine, never 0."""
    return run.optimizer.gradient_clipping or NO_CLIPPING


class Update:
    """What one optimizer step does with the gradient it has.

    Attributes:
        loss: of the step, on the device, where the host has not looked at it: unless it is finite no weight changes
            either. None: it has.
        asked: whether a step has come here since this was last set to False.
        behind: how many of the steps that Adam has counted the device left out and the host does not know of yet, on
            the device; None: it knows of all.
    """

    def __init__(self, max_norm: float) -> None:
        self.loss: torch.Tensor | None = None
        self.asked = False
        self.behind: torch.Tensor | None = None
        self._max_norm = max_norm

    def factors(self, norm: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor | None]:
        """What `adam.hybrid_adam_step` is to be given.

        Args:
            norm: scalar, of the whole gradient, times `scale`.
            scale: of the loss.
        """
        self.asked = True
        # As `LowLevelZeroOptimizer._unscale_and_clip_grads` does: one division for the loss scale and the clipping.
        over = (norm / scale + 1e-6) / self._max_norm
        left_out = ~torch.isfinite(norm)
        if self.loss is not None:
            left_out = left_out | ~torch.isfinite(self.loss)
            before = self.behind if self.behind is not None else torch.zeros((), device=left_out.device)
            self.behind = before + left_out
        return {"div_scale": scale * over.clamp(min=1.0), "found_inf": left_out, "behind": self.behind}

    def host_knows_of_one(self) -> None:
        """Of the steps that the device left out the host has taken one back."""
        if self.behind is not None:
            self.behind = self.behind - 1


def adam_with_factors(adam: torch.optim.Optimizer) -> Callable[[dict[str, torch.Tensor | None]], None]:
    """Give the Adam inside of an optimizer what the returned function was last given, at each step."""
    step, factors = adam.step, {}
    adam.step = lambda closure=None: step(closure, **factors)
    return factors.update


def model_groups(grid: Grid) -> list[dist.ProcessGroup]:
    """The groups over whose ranks tensor and pipeline parallelism spread the model."""
    return [group for group in (grid.tp_group, grid.pp_group) if group is not None]


def share_of_square(parameter: nn.Parameter, grid: Grid, shared: Sequence[Mapping[int, nn.Parameter]]) -> float:
    """How much of a gradient's square this rank puts into the sum over `model_groups`, where others have it too.

    Args:
        shared: parameters that several stages have, as {stage: its own}: a head tied to the embedding.
    """
    share = 1.0 if is_distributed_tensor(parameter) else 1.0 / grid.tp_size
    for stages in shared:
        if any(parameter is own for own in stages.values()):
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
        squares += share * sum_of_squares(gradients).to(device)
    for group in groups:
        dist.all_reduce(squares, group=group)
    return squares
