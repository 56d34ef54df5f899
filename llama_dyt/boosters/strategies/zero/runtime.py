"""A run under the engine's ZeRO over all ranks: plugins `zero1`, `zero2` and `zero2_cpu`."""

from __future__ import annotations

from llama_dyt.boosters.engine.scaler import INITIAL_SCALE, LossScaler

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from colossalai.accelerator import get_accelerator
from colossalai.booster.plugin import LowLevelZeroPlugin
from colossalai.booster.plugin.plugin_base import Plugin
from torch import nn

from llama_dyt.boosters.clipping import norm_bound
from llama_dyt.boosters.expert_parallel import expert_groups, spread_experts
from llama_dyt.boosters.grid import Grid, data_parallel_grid
from llama_dyt.boosters.materialize import WORKING_DTYPES, materialize
from llama_dyt.boosters.runtime import EngineRuntime
from llama_dyt.boosters.strategies.zero.clipping import leave_to_device
from llama_dyt.boosters.strategies.zero.fp32_reduction import add_up_in_fp32
from llama_dyt.boosters.strategies.zero.grouping import group_parameters
from llama_dyt.boosters.strategies.zero.state import ZeroState
from llama_dyt.config.run import RunConfig
from llama_dyt.models.spec import family_of


class ZeroRuntime(EngineRuntime):
    """A plugin whose optimizer is a LowLevelZeroOptimizer."""

    def __init__(self, run: RunConfig, plugin: Plugin, model: nn.Module, optimizer: Any, grid: Grid, stage: int):
        super().__init__(plugin, model, optimizer, grid)
        # Stage 2 and sums in fp32 reduce every micro batch and add up what a rank keeps.
        self.holds_back = stage == 1 and not run.booster.fp32_gradients
        self.optimizer.reduces_every_micro_batch = not self.holds_back
        if run.booster.fp32_gradients:
            add_up_in_fp32(self.optimizer)
        self.update = leave_to_device(self.optimizer, norm_bound(run), grid, self._shared_parameters())
        fp16 = run.booster.mixed_precision == "fp16"
        self.scaler = LossScaler(self.optimizer.mixed_precision_mixin if fp16 else None)
        self.state = ZeroState(self.module, self.optimizer, grid, self.shapes, self.scaler)

    def _shared_parameters(self) -> Sequence[Mapping[int, nn.Parameter]]:
        """Parameters that several pipeline stages have, as {stage: its own}."""
        return ()

    def gradients(self) -> Iterator[torch.Tensor]:
        yield from super().gradients()
        for store in self.optimizer.pg_to_grad_store.values():
            for slices_of in store._grads_of_params.values():
                for slices in slices_of.values():
                    yield from slices


def boost_zero(run: RunConfig, model: nn.Module, optimizer: Any, stage: int, offload: bool) -> ZeroRuntime:
    """See `Strategy.boost`. `offload`: masters and moments in host memory."""
    plugin = LowLevelZeroPlugin(
        stage=stage,
        precision=run.booster.mixed_precision,
        initial_scale=INITIAL_SCALE,
        max_norm=norm_bound(run),
        cpu_offload=offload,
    )
    experts = expert_groups(None, run.booster.ep)
    spread_experts(model, family_of(model.config), experts)
    group_parameters(optimizer, dist.group.WORLD)
    materialize(model, get_accelerator().get_current_device(), WORKING_DTYPES[run.booster.mixed_precision])
    return ZeroRuntime(run, plugin, model, optimizer, data_parallel_grid(experts), stage)
