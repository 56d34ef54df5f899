"""Tokens on their way to the ranks that have their experts, and back."""

from __future__ import annotations

import llama_dyt.boosters.engine  # noqa: F401

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F


def exchanged(
    experts: nn.Module, group: dist.ProcessGroup, tokens: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """As `MixtralDytExperts.forward`, of experts that the ranks of `group` have between them, the first ones the first.
    Collective, backward too; only choices that have a place are sent.

    A rank may get no token, or all.
    """
    size, own = dist.get_world_size(group), len(next(experts.parameters()))
    order = chosen.flatten().argsort(stable=True)
    counts = torch.zeros(size * own + 1, dtype=torch.int64, device=chosen.device)
    counts.scatter_add_(0, chosen.flatten(), torch.ones_like(chosen.flatten()))
    counts = counts[:-1]  # the last are of no expert, and lie behind all others
    arriving = torch.empty_like(counts)  # of each rank for each expert here
    dist.all_to_all_single(arriving, counts, group=group)
    sent, received = counts.view(size, own).sum(1).tolist(), arriving.view(size, own).sum(1).tolist()
    rows = _Exchange.apply(tokens[order[: sum(sent)] // chosen.shape[1]], sent, received, group)
    # They lie by rank and then by expert, and are wanted by expert.
    expert = torch.arange(own, device=chosen.device).repeat(size).repeat_interleave(arriving)
    by_expert = expert.argsort(stable=True)
    ends = arriving.view(size, own).sum(0).cumsum(0).int()
    outputs = experts.of_rows(rows[by_expert], ends)
    outputs = _Exchange.apply(outputs[_inverse(by_expert)], received, sent, group)
    if len(outputs) < len(order):  # those that had no place
        outputs = F.pad(outputs, (0, 0, 0, len(order) - len(outputs)))
    outputs = outputs[_inverse(order)].view(*chosen.shape, -1)
    return (outputs * weights[..., None]).sum(1).to(tokens.dtype)


def _inverse(order: torch.Tensor) -> torch.Tensor:
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return places


class _Exchange(torch.autograd.Function):
    """Rows to other ranks, `sent` of them to each in turn, for `received` of each; backward the other way round."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
    ) -> torch.Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _send(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return _send(gradient, ctx.received, ctx.sent, ctx.group), None, None, None


def _send(rows: torch.Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> torch.Tensor:
    arrived = rows.new_empty(sum(received), rows.shape[1])
    dist.all_to_all_single(arrived, rows.contiguous(), received, sent, group=group)
    return arrived
