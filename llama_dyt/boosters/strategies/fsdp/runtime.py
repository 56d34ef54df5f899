"""A run under `FsdpPlugin`."""

from __future__ import annotations

from llama_dyt.boosters.engine.scaler import INITIAL_SCALE, LossScaler

from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule

from llama_dyt.boosters.clipping import norm_bound
from llama_dyt.boosters.expert_parallel import expert_groups, spread_experts, spread_parameters
from llama_dyt.boosters.grid import data_parallel_grid
from llama_dyt.boosters.runtime import EngineRuntime
from llama_dyt.boosters.strategies.fsdp.plugin import FsdpPlugin
from llama_dyt.boosters.strategies.fsdp.state import FsdpState
from llama_dyt.config.run import RunConfig
from llama_dyt.models.spec import ModelSpec


class FsdpRuntime(EngineRuntime):
    """
    Args:
        shard_size: ranks that share one copy of the model.
        offload: shards and Adam in host memory.
    """

    module: FSDPModule

    def __init__(
        self, run: RunConfig, model: nn.Module, optimizer: Any, family: ModelSpec, shard_size: int, offload: bool
    ) -> None:
        layers = family.layers_of(model)
        experts = expert_groups(None, run.booster.ep)
        spread_experts(model, family, experts)
        spread = {name: groups for name, _, groups in spread_parameters(model)}
        plugin = FsdpPlugin(
            layers=list(layers),
            precision=run.booster.mixed_precision,
            initial_scale=INITIAL_SCALE,
            max_norm=norm_bound(run),
            shard_size=shard_size,
            cpu_offload=offload,
            experts=experts,
        )
        super().__init__(plugin, model, optimizer, data_parallel_grid(experts))
        self.holds_back = plugin.replicated
        self.update = self.optimizer.update
        self.scaler = LossScaler(self.optimizer.mixed_precision_mixin)
        self.state = FsdpState(self.module, self.optimizer, self.grid, self.scaler, spread)

    def after_evaluation(self) -> None:
        self.module.reshard()  # the root stays whole after a forward pass, for a backward that does not come here
