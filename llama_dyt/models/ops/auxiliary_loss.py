"""Losses of a decoder layer's own, beside the cross entropy, such as how evenly a router chooses.

A layer hands one on with its hidden states, which stay as they are; in the backward pass its gradient joins theirs. So
nothing has to be carried to the head, and it is the same on every stage of a pipeline and in a layer that recomputes.
The loss that is logged stays the cross entropy alone, as with the z-loss. A saved model carries this along.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def with_loss(hidden_states: Tensor, loss: Tensor, weight: float) -> Tensor:
    """The same hidden states; backward adds the gradient of weight * loss.

    Args:
        loss: a scalar; a mean over the tokens of the call, computed from what every tensor-parallel rank has alike.
        weight: the layer's `auxiliary_weight`.
    """
    return _WithLoss.apply(hidden_states, loss, weight)


class _WithLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor, loss: Tensor, weight: float) -> Tensor:
        ctx.gradient_of_loss = torch.full_like(loss, weight)
        return hidden_states.clone()  # zero-bubble pipelines free what a stage has sent, which the loss may still need

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradient, ctx.gradient_of_loss, None
