"""Which ranks each parameter's gradient is averaged over, and its states are cut over, under the engine's ZeRO."""

from __future__ import annotations

from llama_dyt.boosters.engine.upstream import replace

import functools
from typing import Any

import torch.distributed as dist
from colossalai.zero import LowLevelZeroOptimizer

from llama_dyt.boosters.expert_parallel import groups_of

_DATA_GROUP = "data_group_of_dense"


def group_parameters(adam: Any, data: dist.ProcessGroup) -> None:
    """Have the engine's ZeRO over this Adam treat spread experts by the ranks that have the same ones, and all else by
    the data-parallel ranks. Call it after they are spread, before the plugin wraps the Adam.

    Upstream takes `pg_to_param_list`, which none of its plugins can be given.
    """
    if any(groups_of(parameter) for group in adam.param_groups for parameter in group["params"]):
        setattr(adam, _DATA_GROUP, data)
        _take_groups()


@functools.cache
def _take_groups() -> None:
    upstream = LowLevelZeroOptimizer.__init__

    @functools.wraps(upstream)
    def __init__(self: LowLevelZeroOptimizer, optimizer: Any, *args: Any, **options: Any) -> None:
        data = getattr(optimizer, _DATA_GROUP, None)
        if data is not None:
            by_group: dict[dist.ProcessGroup, list] = {data: []}
            for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
                spread = groups_of(parameter)
                by_group.setdefault(data if spread is None else spread.copies, []).append(parameter)
            options |= {"pg_to_param_list": by_group, "dp_process_group": None}
        upstream(self, optimizer, *args, **options)

    replace(LowLevelZeroOptimizer, "__init__", __init__)
