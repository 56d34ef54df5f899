"""Expert parallelism: data-parallel ranks that share the experts of each layer, and send each other their tokens.

The ranks are taken out of data parallelism: each reads data of its own and has all other weights. Of R data-parallel
ranks, ep neighbouring ones have each expert once between them; R / ep ranks have the same experts, copies of each
other. What a rank computes for an expert's gradient is of the tokens of all ep ranks already, so it is averaged over
the copies alone and would be ep times too large: `weight_gradient_share` takes it back where the gradient is made,
whatever averages it afterwards.
"""

from __future__ import annotations

import llama_dyt.boosters.engine  # noqa: F401

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from llama_dyt.boosters.layers.expert_exchange import exchanged
from llama_dyt.models.spec import ModelSpec

_GROUPS = "expert_groups"
_WHOLE = "whole_shape"


@dataclass(frozen=True)
class ExpertGroups:
    """Where a process stands among those that share experts.

    Attributes:
        rank, size: among the ranks that have each expert once between them.
        group: these.
        copy_rank, num_copies: among the ranks that have the same experts.
        copies: these.
        data: all data-parallel ranks.
    """

    rank: int
    size: int
    group: dist.ProcessGroup
    copy_rank: int
    num_copies: int
    copies: dist.ProcessGroup
    data: dist.ProcessGroup


def expert_groups(data: dist.ProcessGroup | None, size: int) -> ExpertGroups | None:
    """The groups of a process; None where `size` is 1. Collective over all ranks.

    Args:
        data: the data-parallel ranks that it is one of; None: all.
        size: --ep, which divides them.
    """
    if size == 1:
        return None
    data = data or dist.group.WORLD
    every: list[list[int]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(every, dist.get_process_group_ranks(data))
    place, own = dist.get_rank(data), dist.get_process_group_ranks(data)
    sharing: dict[tuple[int, ...], dist.ProcessGroup] = {}
    # Every rank makes all groups, in the same order.
    for ranks in sorted({tuple(ranks) for ranks in every}):
        neighbours = [ranks[first : first + size] for first in range(0, len(ranks), size)]
        copies = [ranks[first::size] for first in range(size)]
        for kind, members in [*((0, each) for each in neighbours), *((1, each) for each in copies)]:
            group = dist.new_group(list(members))
            if dist.get_rank() in members:
                sharing[kind] = group
    return ExpertGroups(
        rank=place % size,
        size=size,
        group=sharing[0],
        copy_rank=place // size,
        num_copies=len(own) // size,
        copies=sharing[1],
        data=data,
    )


def spread_experts(model: nn.Module, family: ModelSpec, groups: ExpertGroups | None) -> None:
    """Leave a model, on the meta device, this rank's experts alone, and have tokens sent to those who have theirs."""
    if groups is None:
        return
    for layer in family.layers_of(model):
        experts = layer.get_submodule(family.experts).experts
        for parameter in experts.parameters():
            whole = parameter.shape
            parameter.data = parameter.data.new_empty((whole[0] // groups.size, *whole[1:]))
            setattr(parameter, _WHOLE, whole)
            setattr(parameter, _GROUPS, groups)
        experts.weight_gradient_share = 1.0 / groups.size
        experts.forward = functools.partial(exchanged, experts, groups.group)


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape that a parameter has over all ranks that share experts."""
    return getattr(parameter, _WHOLE, parameter.shape)


def groups_of(parameter: nn.Parameter) -> ExpertGroups | None:
    """The groups of a parameter of experts that are spread; None of any other."""
    return getattr(parameter, _GROUPS, None)


def spread_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, ExpertGroups]]:
    """(name, parameter, groups) of the experts that are spread."""
    for name, parameter in module.named_parameters():
        if (groups := groups_of(parameter)) is not None:
            yield name, parameter, groups


def average_over_copies(module: nn.Module) -> None:
    """Average the gradients of spread experts over those who have the same ones: where a booster does not."""
    for _, parameter, groups in spread_parameters(module):
        if groups.num_copies > 1 and parameter.grad is not None:
            dist.all_reduce(parameter.grad, group=groups.copies)
            parameter.grad.div_(groups.num_copies)


class OwnRows:
    """What of a whole tensor of experts a rank has, indexed as that is."""

    def __init__(self, source: object, groups: ExpertGroups, rows: int) -> None:
        self._source, self._first = source, groups.rank * rows

    def __getitem__(self, index: slice | tuple[slice, ...]) -> torch.Tensor:
        rows, *others = index if isinstance(index, tuple) else (index,)
        return self._source[(slice(rows.start + self._first, rows.stop + self._first), *others)]
