"""Where a process stands: its data-parallel, tensor-parallel and pipeline coordinates and the groups they form.

One small value that the data layer (which rows), the trainer (which loss) and the checkpoint (who writes) all read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist

from llama_dyt.boosters.expert_parallel import ExpertGroups


@dataclass(frozen=True)
class Grid:
    """Coordinates of this process. Groups are None where the axis has size 1 or is the whole world.

    Ranks that differ only in tensor, pipeline or sequence coordinate read the same data; ranks that differ in the
    data-parallel coordinate read different data, and neighbouring ones may share experts. The sequence axis is that of
    all_to_all; split_gather has none, it works over the tensor axis.
    """

    dp_rank: int
    dp_size: int
    tp_rank: int = 0
    tp_size: int = 1
    pp_rank: int = 0
    pp_size: int = 1
    sp_rank: int = 0
    sp_size: int = 1
    tp_group: dist.ProcessGroup | None = None
    pp_group: dist.ProcessGroup | None = None
    experts: ExpertGroups | None = None

    @property
    def is_writer(self) -> bool:
        """True on the one process of each pipeline stage that writes this stage's parameters."""
        return self.dp_rank == 0 and self.tp_rank == 0 and self.sp_rank == 0

    @property
    def averaged_over(self) -> int:
        """How many ranks the engine averages a gradient over: all that see other tokens."""
        return self.dp_size * self.sp_size


def data_parallel_grid(experts: ExpertGroups | None = None) -> Grid:
    """That of plain data parallelism: every rank reads data of its own."""
    return Grid(dp_rank=dist.get_rank(), dp_size=dist.get_world_size(), experts=experts)
