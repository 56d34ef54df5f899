"""The zero-bubble pipeline (zbv, arXiv 2401.10241): its schedule, its linear layers, and what is wrong in the engine's.

Its own file because it is the one pipeline that takes the backward pass apart: gradients of the inputs at once, since
another stage waits for them, gradients of the weights when a stage would have nothing else to do.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from colossalai.amp.naive_amp.mixed_precision_mixin import FP16MixedPrecisionMixin
from colossalai.pipeline.schedule.v_schedule import PipelineGraph, ScheduledNode
from colossalai.pipeline.schedule.zero_bubble_pp import ZeroBubbleVPipeScheduler
from colossalai.pipeline.weight_grad_store import WeightGradStore
from colossalai.shardformer.layer._operation import linear_with_grad_accum
from torch import nn

from llama_dyt.config.run import RunConfig


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
        return linear_with_grad_accum(input, self.weight, self.bias, False, use_zbv=True)


def zero_bubble_schedule(run: RunConfig) -> list[list[ScheduledNode]]:
    """The order of work of every stage under zbv, for the micro batches of one optimizer step.

    It is planned from relative costs: forward, input gradients and weight gradients take as long as one another, a
    transfer next to nothing; a micro batch's activations are let go in part after its input gradients.
    """
    booster = run.booster
    kept, freed_by_inputs, freed_by_weights = 34, -2, -32  # activations of a layer in units of hidden size, per token
    graph = PipelineGraph(
        n_stage=booster.pp,
        n_micro=run.micro_batches_a_step,
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
    _add_up_weight_gradients()
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

    ZeroBubbleVPipeScheduler.run_forward_backward = run_forward_backward


def _add_up_weight_gradients() -> None:
    """Upstream `WeightGradStore.pop` adds up gradients only through apex's fused kernel; without it what the function
    returns is dropped for every micro batch but the first."""

    @classmethod
    def pop(cls, chunk: int = 0) -> None:
        for total_input, grad_output, weight, compute in cls.weight_grad_queue[chunk].get_nowait():
            if weight.grad is None:
                weight.grad = compute(total_input, grad_output)
                continue
            gradient = compute(total_input, grad_output, weight.grad)
            if gradient is not None:  # the fused kernel adds in place, and returns nothing
                weight.grad.add_(gradient)

    WeightGradStore.pop = pop


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

    FP16MixedPrecisionMixin.pre_backward_by_grad = pre_backward_by_grad
