"""The zero-bubble pipeline (zbv, arXiv 2401.10241): its order of work, its linear layers, what the engine's gets wrong.

It is the one pipeline that takes the backward pass apart: gradients of the inputs at once, since another stage waits
for them, gradients of the weights when a stage would have nothing else to do.
"""

from __future__ import annotations

from llama_dyt.boosters.engine.upstream import replace

import functools
from typing import Any

import torch
from colossalai.amp.naive_amp.mixed_precision_mixin import FP16MixedPrecisionMixin
from colossalai.pipeline.schedule.v_schedule import PipelineGraph, ScheduledNode
from colossalai.pipeline.schedule.zero_bubble_pp import ZeroBubbleVPipeScheduler
from colossalai.pipeline.weight_grad_store import WeightGradStore
from torch import nn
from torch.nn import functional as F

from llama_dyt.config.run import RunConfig


class _DeferredLinear(torch.autograd.Function):
    """A linear map whose weight's gradient is put into the engine's store, for the schedule to compute it later.

    Upstream's functions put the weight there as the backward pass finds it saved, which under gradient checkpointing is
    another tensor over the same memory: the gradient went nowhere. This one remembers the parameter itself.
    """

    @staticmethod
    def forward(ctx: Any, input_: torch.Tensor, weight: nn.Parameter, bias: nn.Parameter | None) -> torch.Tensor:
        ctx.save_for_backward(input_, weight)
        ctx.parameter, ctx.has_bias = weight, bias is not None
        return F.linear(input_, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input_, weight = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        WeightGradStore.put(input_.reshape(-1, input_.shape[-1]), flat, ctx.parameter, _weight_gradient)
        return gradient.matmul(weight), None, flat.sum(0) if ctx.has_bias else None


@torch.no_grad()  # the store calls it outside the backward pass, with inputs that have a graph behind them
def _weight_gradient(
    input_: torch.Tensor, gradient: torch.Tensor, add_to: torch.Tensor | None = None
) -> torch.Tensor | None:
    """What the store calls; with `add_to`, what earlier micro batches left. Upstream's own function without apex's
    kernel returns a gradient then too, which the store drops."""
    if add_to is None:
        return gradient.t().matmul(input_)
    add_to.addmm_(gradient.t(), input_)


deferred_linear = _DeferredLinear.apply
"""(input (..., I), weight (O, I), bias (O,) or None) → (..., O), as `torch.nn.functional.linear`."""


class DeferredGradientLinear(nn.Linear):
    """A linear layer, without tensor parallelism, that leaves its weight's gradient for later.

    Upstream `LinearWithGradAccum` gathers a random state from the whole world when it is made, and so hangs where
    stages hold different numbers of linear layers: only one has the head.
    """

    @staticmethod
    def from_native_module(module: nn.Linear, process_group: object, **_: object) -> nn.Module:
        module.__class__ = DeferredGradientLinear
        return module

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return deferred_linear(input, self.weight, self.bias)


def plan_work(run: RunConfig) -> list[list[ScheduledNode]]:
    """The order of work of every stage under zbv, for the micro batches of one optimizer step.

    It is planned from relative costs: forward, input gradients and weight gradients take as long as one another, a
    transfer next to nothing; a micro batch's activations are let go in part after its input gradients.
    """
    booster = run.booster
    kept, freed_by_inputs, freed_by_weights = 34, -2, -32  # activations of a layer in units of hidden size, per token
    graph = PipelineGraph(
        n_stage=booster.pp,
        n_micro=booster.micro_batches(run.data.batch_size * run.optimizer.gradient_accumulation_steps),
        f_cost=1000,
        b_cost=1000,
        w_cost=1000,
        c_cost=1,
        f_mem=kept,
        b_mem=freed_by_inputs,
        w_mem=freed_by_weights,
    )
    return graph.get_v_schedule()


def mend_zero_bubble() -> None:
    """Adapt the engine's schedule, once a process."""
    _scale_the_loss()
    _forget_transfers_of_earlier_steps()


def _forget_transfers_of_earlier_steps() -> None:
    """Upstream `ZeroBubbleVPipeScheduler.run_forward_backward` waits at its end for all that it ever sent: handles of
    earlier steps stay in `wait_handles`, where gloo waits for them for ever."""
    upstream = ZeroBubbleVPipeScheduler.run_forward_backward

    @functools.wraps(upstream)
    def run_forward_backward(self: ZeroBubbleVPipeScheduler, *args: Any, **kwargs: Any) -> dict:
        self.wait_handles.clear()
        return upstream(self, *args, **kwargs)

    replace(ZeroBubbleVPipeScheduler, "run_forward_backward", run_forward_backward)


def _scale_the_loss() -> None:
    """Upstream `ZeroBubbleVPipeScheduler.backward_b_step` hands the loss to `backward_by_grad` with no gradient, which
    `FP16MixedPrecisionMixin` leaves as it is: fp16 gradients carry no loss scale and are divided by it all the same."""
    upstream = FP16MixedPrecisionMixin.pre_backward_by_grad

    @functools.wraps(upstream)
    def pre_backward_by_grad(self: FP16MixedPrecisionMixin, tensor: Any, grad: Any) -> Any:
        grad = upstream(self, tensor, grad)
        if not isinstance(grad, list):
            return grad
        pairs = zip(tensor, grad, strict=True)
        return [torch.full_like(of, self.loss_scale) if value is None else value for of, value in pairs]

    replace(FP16MixedPrecisionMixin, "pre_backward_by_grad", pre_backward_by_grad)
