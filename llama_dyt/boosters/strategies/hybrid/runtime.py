"""A run under the engine's hybrid plugin, which has another optimizer for fp32, half precision and ZeRO."""

from __future__ import annotations

from llama_dyt.boosters.engine.scaler import LossScaler
from llama_dyt.boosters.engine.upstream import replace

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from colossalai.booster.plugin import HybridParallelPlugin
from torch import nn

from llama_dyt.boosters.clipping import norm_bound
from llama_dyt.boosters.expert_parallel import (
    average_over_copies,
    expert_groups,
    groups_of,
    spread_experts,
    spread_parameters,
)
from llama_dyt.boosters.grid import Grid
from llama_dyt.boosters.layers.forward_pipeline import ForwardPipeline
from llama_dyt.boosters.parameter_state import ParameterState
from llama_dyt.boosters.runtime import EngineRuntime
from llama_dyt.boosters.step import Criterion
from llama_dyt.boosters.strategies.hybrid.clipping import leave_to_device
from llama_dyt.boosters.strategies.hybrid.plugin import build_plugin, grid_of
from llama_dyt.boosters.strategies.hybrid.state import MasterState
from llama_dyt.boosters.strategies.zero.grouping import group_parameters
from llama_dyt.boosters.strategies.zero.runtime import ZeroRuntime
from llama_dyt.config.run import RunConfig
from llama_dyt.models.spec import ModelSpec


class _Pipeline(EngineRuntime):
    """How batches go through the stages, whatever the optimizer."""

    _style: str
    _micro_batch_size: int
    _last = True
    _averages_experts = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._forward: dict[torch.Size, ForwardPipeline] = {}

    def pipeline_step(self, batch: dict[str, torch.Tensor], criterion: Criterion) -> torch.Tensor | None:
        batches = iter([batch])
        outputs = self._booster.execute_pipeline(batches, self.model, criterion, self.optimizer, return_loss=True)
        return outputs["loss"]

    def pipeline_evaluation(self, batch: dict[str, torch.Tensor], criterion: Criterion) -> torch.Tensor | None:
        shape = batch["input_ids"].shape
        if shape not in self._forward:
            self._forward[shape] = ForwardPipeline(self.plugin, self._style, self._micro_batch_size)
        return self._forward[shape].run(self.model, batch, criterion)

    def _average_experts(self) -> None:
        """See to the gradients of spread experts, which the engine would average over all data-parallel ranks."""
        if self.grid.experts is None:
            return

        def sync_dp_grads() -> None:
            data = self.model.dp_group
            for parameter in self.module.parameters():
                if data.size() > 1 and parameter.grad is not None and groups_of(parameter) is None:
                    dist.all_reduce(parameter.grad, group=data)
                    parameter.grad.div_(data.size())
            average_over_copies(self.module)

        replace(self.model, "sync_dp_grads", sync_dp_grads)

    def accumulation(self, last: bool) -> AbstractContextManager[None]:
        self._last = last
        return super().accumulation(last)

    def backward(self, loss: torch.Tensor) -> None:
        super().backward(loss)
        if self._last and self.grid.experts is not None and self._averages_experts:
            average_over_copies(self.module)

    def _set_pipeline(self, run: RunConfig) -> None:
        self._style, self._micro_batch_size = run.booster.pp_style, run.booster.micro_batch_size


class Float32Runtime(_Pipeline):
    """HybridParallelNaiveOptimizer: Adam on the weights themselves."""

    def __init__(
        self, run: RunConfig, plugin: HybridParallelPlugin, model: nn.Module, optimizer: Any, grid: Grid
    ) -> None:
        super().__init__(plugin, model, optimizer, grid)
        self._average_experts()
        self._set_pipeline(run)
        self.holds_back = True
        self.update = leave_to_device(self.optimizer, norm_bound(run), self.grid, clips="_clip_grad_norm")
        self.state = ParameterState(self.module, self.optimizer, self.grid, self.shapes, self.scaler)


class HalfPrecisionRuntime(_Pipeline):
    """HybridParallelAMPOptimizer: an fp32 master beside each weight."""

    def __init__(
        self, run: RunConfig, plugin: HybridParallelPlugin, model: nn.Module, optimizer: Any, grid: Grid
    ) -> None:
        super().__init__(plugin, model, optimizer, grid)
        self._average_experts()
        self._set_pipeline(run)
        self.holds_back = True
        mixin = self.optimizer.mixed_precision
        self.update = leave_to_device(
            self.optimizer,
            norm_bound(run),
            self.grid,
            clips="_unscale_and_clip_grads",
            scale=lambda: mixin.get_grad_div_scale(),  # looked up at each step: the loss scaler puts its own there
        )
        self.scaler = LossScaler(mixin if run.booster.mixed_precision == "fp16" else None)
        self.state = MasterState(self.module, self.optimizer, self.grid, self.shapes, self.scaler)


class HybridZeroRuntime(_Pipeline, ZeroRuntime):
    """HybridParallelZeroOptimizer: ZeRO over the data-parallel ranks of what the other axes left."""

    _averages_experts = False  # its optimizer does, see `zero/grouping.py`

    def __init__(
        self, run: RunConfig, plugin: HybridParallelPlugin, model: nn.Module, optimizer: Any, grid: Grid, stage: int
    ) -> None:
        super().__init__(run, plugin, model, optimizer, grid, stage)
        self._set_pipeline(run)

    def _shared_parameters(self) -> Sequence[Mapping[int, nn.Parameter]]:
        return self.optimizer.shared_params


def boost(
    run: RunConfig, model: nn.Module, optimizer: Any, family: ModelSpec, stage: int, offload: bool = False
) -> EngineRuntime:
    """See `Strategy.boost`.

    Args:
        stage: of ZeRO.
        offload: masters and moments in host memory.
    """
    plugin = build_plugin(run, family, stage, offload)
    experts = expert_groups(plugin.mixed_dp_group, run.booster.ep)
    grid = grid_of(plugin, experts)
    spread_experts(model, family, experts)
    if stage:
        group_parameters(optimizer, plugin.mixed_dp_group)
        return HybridZeroRuntime(run, plugin, model, optimizer, grid, stage)
    # DistributedDataParallel leaves them alone.
    model._ddp_params_and_buffers_to_ignore = [name for name, *_ in spread_parameters(model)]
    runtime = Float32Runtime if run.booster.mixed_precision == "fp32" else HalfPrecisionRuntime
    return runtime(run, plugin, model, optimizer, grid)
