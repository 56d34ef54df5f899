"""What routers did, summed over the ranks of a run: how `models.ops.routing` is told of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from llama_dyt.boosters.grid import Grid
from llama_dyt.config.run import RunConfig
from llama_dyt.models.ops.routing import RoutingBoard
from llama_dyt.models.spec import ModelSpec


def follow_routing(run: RunConfig, module: nn.Module, family: ModelSpec, grid: Grid) -> RoutingBoard | None:
    """Have a model's routers count over all ranks; None where the family has none. Collective.

    Every rank adds what its layers did with its tokens. Ranks that have the same tokens add them again, as often as
    each other, which leaves frequencies as they are.
    """
    if family.experts is None:
        return None
    board: RoutingBoard = family.decoder_of(module).routing_board
    # A group of its own: sums are begun in the order of micro batches, whatever else ranks do in between.
    group = dist.new_group()

    def begin(sums: torch.Tensor) -> Callable[[], None]:
        return dist.all_reduce(sums, group=group, async_op=True).wait

    board.reduce = begin
    slices = grid.tp_size if run.booster.sequence_parallelism == "split_gather" else 1
    # Gradients are averaged over `averaged_over` ranks; `tp_size` ones count the same tokens. A layer's weight is
    # divided by the slices of split_gather, but a router reads whole sequences.
    board.copies = grid.averaged_over * grid.tp_size * slices
    board.alike = grid.tp_size
    board.chunks = run.booster.model_chunks if grid.pp_size > 1 else 1
    return board
