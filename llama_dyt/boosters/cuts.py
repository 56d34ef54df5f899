"""How tensor parallelism cut a parameter: which part of the whole a rank holds, and the whole again from the parts.

Its own file because every kind of `TrainingState` needs both, whatever ZeRO does to the part afterwards.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from colossalai.tensor.d_tensor.api import get_sharding_spec, is_distributed_tensor
from torch import nn

from .grid import Grid


class TensorParallelCut:
    """The part of one parameter that this rank's coordinate in the tensor-parallel group stands for.

    Attributes:
        whole: the shape the parameter has in a checkpoint.
        shape: that of the part. Along the cut the parts together may be longer than the whole: a padded vocabulary.
        dimension: along which it is cut; None if every rank has all of it.
    """

    def __init__(self, parameter: nn.Parameter, whole: torch.Size, grid: Grid) -> None:
        self.whole = whole
        self.shape = parameter.shape
        self.dimension = cut_dimension(parameter)
        self._grid = grid
        self._start = 0 if self.dimension is None else self.shape[self.dimension] * grid.tp_rank

    def read(self, source: Any, begin: int = 0, end: int | None = None) -> torch.Tensor:
        """Elements [begin, end) of the flattened part, fp32, from a whole tensor or what can be sliced like one.

        Only the rows in which they lie are read, and of those only the columns of this part. Padding is zeros.
        """
        end = self.shape.numel() if end is None else end
        row = math.prod(self.shape[1:])
        first, last = begin // row, -(-end // row)
        wanted = [slice(first, last), *(slice(0, size) for size in self.shape[1:])]
        window = tuple(part.stop - part.start for part in wanted)
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

    def join(self, part: torch.Tensor) -> torch.Tensor:
        """Every rank's part, of shape `shape` → the whole on each, without padding. Collective over the group."""
        if self.dimension is None:
            return part
        parts = [torch.empty_like(part) for _ in range(self._grid.tp_size)]
        dist.all_gather(parts, part.contiguous(), group=self._grid.tp_group)
        return torch.cat(parts, dim=self.dimension).narrow(self.dimension, 0, self.whole[self.dimension])


def cut_dimension(parameter: nn.Parameter) -> int | None:
    """The dimension along which tensor parallelism cut a parameter, from the engine's sharding spec."""
    if not is_distributed_tensor(parameter):
        return None
    return next(iter(get_sharding_spec(parameter).dim_partition_dict), None)
