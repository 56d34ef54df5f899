"""Sequence parallelism: ranks that hold slices of the same sequences, in two ways.

`split_gather` works over the tensor-parallel ranks. Between the split linear layers each of them would hold the same
hidden states; here each holds a slice of them, gathered before a block's first linear layers and scattered, already
summed, after its last (`parallel_linear.py`).

`all_to_all` (Ulysses, arXiv 2309.14509) has ranks of its own. Every layer works on a slice alone, but for attention,
which must see whole sequences: before it, ranks trade slices of all heads for whole sequences of some heads, and
trade back after it. It is one of transformers' registered attention functions, around the one the model had.
"""

from __future__ import annotations

from llama_dyt.boosters.engine.upstream import replace

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from colossalai.booster.plugin.hybrid_parallel_plugin import HybridParallelZeroOptimizer
from colossalai.shardformer.layer._operation import split_forward_gather_backward
from colossalai.shardformer.layer.utils import SeqParallelUtils
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from llama_dyt.boosters.layers.parallel_linear import LENGTH
from llama_dyt.models.ops.loss import shift_labels

ALL_TO_ALL = "llama_dyt_all_to_all"
"""The name of our attention function in transformers' registry."""


# --- split_gather ------------------------------------------------------------------------------------------------


def cut_input(module: nn.Module, group: dist.ProcessGroup) -> None:
    """Let a module see this rank's slice of the hidden states that it is given, its first argument."""
    module.register_forward_pre_hook(
        lambda _, inputs: (split_forward_gather_backward(inputs[0], LENGTH, group), *inputs[1:])
    )


def sum_gradients_of_slices(module: nn.Module) -> None:
    """Mark a module's parameters as used on slices: the engine then sums their gradients over the group."""
    for parameter in module.parameters():
        SeqParallelUtils.marked_as_sp_partial_derived_param(parameter)


def mend_sums_of_slices() -> None:
    """Upstream `HybridParallelZeroOptimizer._sync_sp_grads` sums, after every micro batch, all that stage 2 has added
    up so far, so what earlier micro batches left, which was summed then, counted once more for every rank."""

    def _sync_sp_grads(self: HybridParallelZeroOptimizer) -> None:
        marked = [
            store.get_working_grad_by_param_id(id(parameter))
            for group in self._working_param_groups.values()
            for parameter in group
            if SeqParallelUtils.is_sp_partial_derived_param(parameter) and parameter.requires_grad
            for store in (self.pid_to_grad_store[id(parameter)],)
        ]
        if not self.require_grad_sync or not marked:
            return
        ranks = dist.get_world_size(self.tp_pg)
        for gradient in marked:
            if hasattr(gradient, "summed"):  # new tensors after every optimizer step
                gradient.sub_(gradient.summed * (1 - 1 / ranks))
        SeqParallelUtils.allreduce_partial_data_grad(process_group=self.tp_pg, grads=marked)
        if self.reduces_every_micro_batch:  # set by `strategies.zero.runtime`
            for gradient in marked:
                gradient.summed = gradient.clone()

    replace(HybridParallelZeroOptimizer, "_sync_sp_grads", _sync_sp_grads)


# --- all_to_all --------------------------------------------------------------------------------------------------


def cut_batch(
    batch: dict[str, torch.Tensor], rank: int, size: int, sliding_window: int | None = None
) -> dict[str, torch.Tensor]:
    """This rank's slice of every sequence of a batch.

    Args:
        batch: input_ids and labels, (B, S) int64 each, labels not shifted; S divisible by `size`. Perhaps position_ids
            and document_ids of the same shape.
        sliding_window: of the model's attention. Where it is shorter than S, a mask has to be made, of whole sequences:
            then document_ids are there in any case.

    Returns:
        input_ids, labels already shifted (the last label of a slice is the next slice's first token) and position_ids,
        in the whole sequence unless they were given, (B, S / size) each; document_ids whole, for attention sees whole
        sequences.
    """
    if size == 1:
        return batch
    input_ids = batch["input_ids"]
    own = slice(rank * input_ids.shape[1] // size, (rank + 1) * input_ids.shape[1] // size)
    positions = batch.get("position_ids")
    if positions is None:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    cut = {
        "input_ids": input_ids[:, own],
        "labels": shift_labels(batch["labels"])[:, own],
        "position_ids": positions[:, own],
    }
    documents = batch.get("document_ids")
    if documents is None and sliding_window is not None and sliding_window < input_ids.shape[1]:
        documents = torch.zeros_like(input_ids)
    return cut if documents is None else {**cut, "document_ids": documents}


class _Trade(torch.autograd.Function):
    """(B, heads, length, ...) → split along one of the two, joined along the other; its gradient goes back."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, split: int, join: int, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.split, ctx.join, ctx.group = split, join, group
        return _trade(tensor, split, join, group)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _trade(gradient, ctx.join, ctx.split, ctx.group), None, None, None


def _trade(tensor: torch.Tensor, split: int, join: int, group: dist.ProcessGroup) -> torch.Tensor:
    parts = torch.stack(tensor.chunk(dist.get_world_size(group), dim=split))
    arrived = torch.empty_like(parts)
    dist.all_to_all_single(arrived, parts, group=group)
    return torch.cat(arrived.unbind(), dim=join)


@dataclass(frozen=True)
class _Heads:
    """What the all-to-all around one attention module needs to know.

    Attributes:
        group: the ranks that hold the slices.
        config: the model's own, which names the attention function inside.
        copies: how often keys and values are repeated so that every rank gets as many of their heads.
    """

    group: dist.ProcessGroup
    config: PreTrainedConfig
    copies: int


class _SomeHeads:
    """An attention module as the function inside sees it, which asks for its config and its groups."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.config = module.sequence_parallel.config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def spread_attention(module: nn.Module, group: dist.ProcessGroup, query_heads: int, key_heads: int) -> None:
    """Have an attention module trade sequences for heads over `group`.

    Args:
        query_heads, key_heads: those of this tensor-parallel rank. Query heads are divisible by the group's size;
            where key and value heads are not, they are repeated until they are.
    """
    ALL_ATTENTION_FUNCTIONS.register(ALL_TO_ALL, attention_over_all_to_all)
    size = dist.get_world_size(group)
    spread_key_heads = math.lcm(key_heads, size)
    module.sequence_parallel = _Heads(group, module.config, copies=spread_key_heads // key_heads)
    module.num_key_value_groups = query_heads // spread_key_heads
    module.config = copy.copy(module.config)
    module.config._attn_implementation = ALL_TO_ALL


def attention_over_all_to_all(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Causal attention over whole sequences, of which each rank of the module's group holds a slice.

    Args:
        query: (B, heads, S / size, head_dim); key and value likewise, with their own number of heads.
        attention_mask: of whole sequences; None where causal attention needs none: batches are packed, or padded on
            the right.

    Returns:
        (B, S / size, heads, head_dim), and no weights.

    Raises:
        ValueError: the mask covers this rank's slice alone.
    """
    heads: _Heads = module.sequence_parallel
    if heads.copies > 1:
        key, value = (tensor.repeat_interleave(heads.copies, dim=1) for tensor in (key, value))
    query, key, value = (_Trade.apply(tensor, 1, 2, heads.group) for tensor in (query, key, value))
    if attention_mask is not None and attention_mask.shape[-1] != key.shape[2]:
        raise ValueError(
            f"sequence parallelism over all_to_all sees sequences of {key.shape[2]}, and was given an attention mask "
            f"for {attention_mask.shape[-1]}: make it of whole sequences"
        )
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(heads.config._attn_implementation, eager_attention_forward)
    attended, _ = attend(_SomeHeads(module), query, key, value, attention_mask, **kwargs)
    return _Trade.apply(attended, 1, 2, heads.group), None
