"""One optimizer step of a boosted run, as types: what it needs and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

Criterion = Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], torch.Tensor]
"""(a pipeline's outputs for one micro batch, its inputs) → loss."""

Objective = Callable[[nn.Module, dict[str, torch.Tensor], float], torch.Tensor]
"""(model, its inputs, what sums over tokens are divided by) → what is minimised; its value is the cross entropy."""


class StepBatch(Protocol):
    """What one optimizer step of this rank needs (see `data.loaders.step.Step`)."""

    micro_batches: list[dict[str, torch.Tensor]]
    num_label_tokens: int


@dataclass(frozen=True)
class StepResult:
    """Outcome of one optimizer step.

    Attributes:
        norm: global 2-norm of the whole gradient, before clipping, loss scale removed; None when it overflowed. Perhaps
            still on the device.
        skipped: True if fp16 gradients overflowed and no weight moved.
        loss_scale: scale the backward used; 1.0 outside fp16.
        counted: whether Adam has counted the step, be it one that the device left out.
    """

    norm: float | torch.Tensor | None
    skipped: bool
    loss_scale: float
    counted: bool = True

    @property
    def grad_norm(self) -> float | None:
        """`norm` as a number; waits for the device where it is there."""
        return None if self.norm is None else float(self.norm)


class NonFiniteGradientError(ArithmeticError):
    """The norm of the gradient, its only argument, is not finite; no weight has changed, and the gradients are there
    still (`Boosted.leave_out_step`). The same on all ranks."""
