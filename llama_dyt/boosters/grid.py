"""Where a process stands: its data-parallel, tensor-parallel and pipeline coordinates and the groups they form.

One small value that the data layer (which rows), the trainer (which loss) and the checkpoint (who writes) all read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist


@dataclass(frozen=True)
class Grid:
    """Coordinates of this process. Groups are None where the axis has size 1 or is the whole world.

    Ranks that differ only in tensor, pipeline or sequence coordinate read the same data; ranks that differ in the
    data-parallel coordinate read different data. The sequence axis is that of all_to_all; split_gather has none, it
    works over the tensor axis.
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

    @property
    def is_writer(self) -> bool:
        """True on the one process of each pipeline stage that writes this stage's parameters."""
        return self.dp_rank == 0 and self.tp_rank == 0 and self.sp_rank == 0

    @property
    def averaged_over(self) -> int:
        """How many ranks the engine averages a gradient over: all that see other tokens."""
        return self.dp_size * self.sp_size


def grid_of(plugin) -> Grid:
    """The grid a Colossal-AI plugin laid out: its mesh if it has one, else plain data parallelism over the world."""
    if hasattr(plugin, "pp_axis"):
        mesh = plugin.pg_mesh
        return Grid(
            dp_rank=mesh.coordinate(plugin.dp_axis),
            dp_size=mesh.size(plugin.dp_axis),
            tp_rank=mesh.coordinate(plugin.tp_axis),
            tp_size=mesh.size(plugin.tp_axis),
            pp_rank=mesh.coordinate(plugin.pp_axis),
            pp_size=mesh.size(plugin.pp_axis),
            sp_rank=mesh.coordinate(plugin.sp_axis),
            sp_size=mesh.size(plugin.sp_axis),
            tp_group=plugin.tp_group if mesh.size(plugin.tp_axis) > 1 else None,
            pp_group=plugin.pp_group if mesh.size(plugin.pp_axis) > 1 else None,
        )
    if hasattr(plugin, "extra_dp_group"):
        zero, replica, tensor = plugin.pg_mesh.coordinate()  # of Gemini's mesh, whose axes are in this order
        return Grid(
            dp_rank=zero * plugin.extra_dp_size + replica,
            dp_size=plugin.dp_size,
            tp_rank=tensor,
            tp_size=plugin.tp_size,
            tp_group=plugin.tp_group,
        )
    return Grid(dp_rank=dist.get_rank(), dp_size=dist.get_world_size())
