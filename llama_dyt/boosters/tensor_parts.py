"""How tensor parallelism cut a parameter: which part of the whole a rank holds, and the whole again from the parts.

Every kind of `TrainingState` needs both, whatever else is done to the part afterwards.
"""

from __future__ import annotations

import llama_dyt.boosters.engine  # noqa: F401

import math
from typing import Any

import torch
import torch.distributed as dist
from colossalai.tensor.d_tensor.api import get_sharding_spec, is_distributed_tensor
from torch import nn

from llama_dyt.boosters.expert_parallel import OwnRows, groups_of
from llama_dyt.boosters.grid import Grid
from llama_dyt.boosters.layers.cut_experts import BLOCKS


class TensorParallelPart:
    """The part of one parameter that this rank's coordinate in the tensor-parallel group stands for.

    Attributes:
        whole: the shape the parameter has in a checkpoint; of experts that are spread this rank's.
        shape: that of the part. Along the cut the parts together may be longer than the whole: a padded vocabulary.
        dimension: along which it is cut; None if every rank has all of it.
        whose: the same on all ranks that have the same part.
    """

    def __init__(self, parameter: nn.Parameter, whole: torch.Size, grid: Grid) -> None:
        self._experts = groups_of(parameter)
        if self._experts is not None:  # the ranks that share experts cut what is left to them
            whole = torch.Size((whole[0] // self._experts.size, *whole[1:]))
        self.whole = whole
        self.shape = parameter.shape
        self.dimension = cut_dimension(parameter)
        self._blocks: int = getattr(parameter, BLOCKS, 1)
        self._grid = grid
        cut = None if self.dimension is None else grid.tp_rank
        self.whose = (cut, None if self._experts is None else self._experts.rank)
        self._start = 0 if self.dimension is None else self.shape[self.dimension] * grid.tp_rank

    def read(self, source: Any, begin: int = 0, end: int | None = None) -> torch.Tensor:
        """Elements [begin, end) of the flattened part, fp32, from a whole tensor or what can be sliced like one.

        Only the rows in which they lie are read, and of those only the columns of this part. Padding is zeros.
        """
        end = self.shape.numel() if end is None else end
        if self._experts is not None:
            source = OwnRows(source, self._experts, self.shape[0])
        row = math.prod(self.shape[1:])
        first, last = begin // row, -(-end // row)
        wanted = [slice(first, last), *(slice(0, size) for size in self.shape[1:])]
        window = tuple(part.stop - part.start for part in wanted)
        if self._blocks > 1:
            return self._read_blocks(source, wanted)[begin - first * row : end - first * row]
        if self.dimension is not None:
            cut = wanted[self.dimension]
            limit = self.whole[self.dimension]
            wanted[self.dimension] = slice(min(cut.start + self._start, limit), min(cut.stop + self._start, limit))
        sizes = tuple(part.stop - part.start for part in wanted)
        values = source[tuple(wanted)] if math.prod(sizes) else torch.empty(sizes)
        if sizes != window:
            padded = torch.zeros(window)
            padded[tuple(slice(0, size) for size in sizes)] = values
            values = padded
        return values.reshape(-1)[begin - first * row : end - first * row]

    def _read_blocks(self, source: Any, wanted: list[slice]) -> torch.Tensor:
        """The same, flattened, where this part is as long a stretch of each of several blocks."""
        length, own = self.whole[self.dimension] // self._blocks, self.shape[self.dimension] // self._blocks
        stretches = []
        for block in range(self._blocks):
            start = block * length + own * self._grid.tp_rank
            wanted[self.dimension] = slice(start, start + own)
            stretches.append(source[tuple(wanted)])
        return torch.cat(stretches, dim=self.dimension).reshape(-1)

    @property
    def copy_rank(self) -> int:
        """This rank's place among those that have the same part of what tensor parallelism leaves."""
        return self._grid.dp_rank if self._experts is None else self._experts.copy_rank

    def join(self, part: torch.Tensor) -> torch.Tensor | None:
        """Every rank's part, of shape `shape` → the whole on the first rank, without padding, None on the others.

        Collective over the group, where the parameter is cut, and over the ranks that share experts.
        """
        joined = self._join_cut(part)
        if self._experts is None or joined is None:
            return joined
        parts = gather_to_first(joined, self._experts.group)
        return None if parts is None else parts.flatten(0, 1)

    def _join_cut(self, part: torch.Tensor) -> torch.Tensor | None:
        if self.dimension is None:
            return part if self._grid.tp_rank == 0 else None
        parts = gather_to_first(part, self._grid.tp_group)
        return None if parts is None else self.assemble(parts)

    def assemble(self, parts: torch.Tensor) -> torch.Tensor:
        """All ranks' parts, (ranks, *shape) → the whole, without padding."""
        if self._blocks > 1:
            of_blocks = [
                torch.cat(parts.chunk(self._blocks, self.dimension + 1)[block].unbind(), self.dimension)
                for block in range(self._blocks)
            ]
            return torch.cat(of_blocks, self.dimension)
        if self.dimension == 0:
            return parts.flatten(0, 1)[: self.whole[0]]
        return torch.cat(parts.unbind(), dim=self.dimension).narrow(self.dimension, 0, self.whole[self.dimension])


def gather_to_first(part: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor | None:
    """Every rank's part, of one shape → (ranks, *shape) on the group's first rank, None on the others. Collective.

    Not `all_gather`: of a large model every rank would hold whole tensors that one rank writes.
    """
    writer = dist.get_global_rank(group, 0)
    if dist.get_rank(group) > 0:
        dist.gather(part.contiguous(), None, dst=writer, group=group)
        return None
    parts = part.new_empty((dist.get_world_size(group), *part.shape))
    dist.gather(part.contiguous(), list(parts.unbind()), dst=writer, group=group)
    return parts


def copied_to_host(whole: torch.Tensor | None, own: torch.Tensor) -> torch.Tensor | None:
    """`whole` on the host, in other memory than `own`, which it was made from and training goes on with: copied once,
    or not at all where it is new."""
    if whole is None:
        return None
    shared = whole.untyped_storage().data_ptr() == own.untyped_storage().data_ptr()
    return whole.clone() if shared and whole.device.type == "cpu" else whole.cpu()


def cut_dimension(parameter: nn.Parameter) -> int | None:
    """The dimension along which tensor parallelism cut a parameter, from the engine's sharding spec."""
    if not is_distributed_tensor(parameter):
        return None
    return next(iter(get_sharding_spec(parameter).dim_partition_dict), None)
