"""Experts under tensor parallelism: every rank has some of the units of each expert, and the router as it is.

What experts read is the same on all ranks, and so is what a router makes of it; what a rank's units add to the output,
and to the gradients of what goes into them, is a part that is summed. A router's own path is whole on each rank: its
gradient must not be.
"""

from __future__ import annotations

import llama_dyt.boosters.engine  # noqa: F401

from typing import Any

import torch
import torch.distributed as dist
from colossalai.device.device_mesh import DeviceMesh
from colossalai.shardformer.layer._operation import reduce_forward, reducescatter_forward_gather_backward
from colossalai.tensor.d_tensor import ShardingSpec
from colossalai.tensor.d_tensor.api import distribute_tensor, sharded_tensor_to_existing_param
from torch import nn

from llama_dyt.boosters.layers.parallel_linear import LENGTH, gather_input, input_of_all

BLOCKS = "blocks"
"""Attribute of a parameter: how many stretches lie in its cut dimension, each of which is cut; gate and up in one."""


def cut_experts(block: nn.Module, group: dist.ProcessGroup, sliced: bool) -> None:
    """Cut the experts of a layer, from the meta device.

    Args:
        block: with `gate` and `experts`, as `models.mixtral` has them.
        sliced: what goes in and out of it are slices of the sequences (split_gather).
    """
    experts = block.experts
    for parameter, dimension, blocks in experts.cuts():
        _cut(parameter, dimension, group)
        setattr(parameter, BLOCKS, blocks)

    def whole_gradients(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        tokens, chosen, weights = inputs
        # Sliced, the block's own input sums what comes back from the experts.
        return tokens if sliced else input_of_all(tokens, group), chosen, input_of_all(weights, group)

    experts.register_forward_pre_hook(whole_gradients)
    if sliced:
        gather_input(block, group)
        size = dist.get_world_size(group)
        # The sum over the ranks at the block's input has the router's gradient, whole on each, as often.
        block.gate.register_forward_pre_hook(lambda _, inputs: (_Share.apply(inputs[0], 1.0 / size),))
        block.register_forward_hook(lambda _, __, output: reducescatter_forward_gather_backward(output, group, LENGTH))
    else:
        experts.register_forward_hook(lambda _, __, output: reduce_forward(output, group))


def _cut(parameter: nn.Parameter, dimension: int, group: dist.ProcessGroup) -> None:
    spec = ShardingSpec(dim_size=parameter.dim(), dim_partition_dict={dimension: [0]})
    cut = distribute_tensor(parameter.data, DeviceMesh.from_process_group(group), spec)
    sharded_tensor_to_existing_param(cut, parameter)


class _Share(torch.autograd.Function):
    """As it is; backward gives a share of the gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, share: float) -> torch.Tensor:
        ctx.share = share
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * ctx.share, None
