"""A run under the engine's hybrid plugin, which has another optimizer for fp32, half precision and ZeRO."""

from __future__ import annotations

from llama_dyt.boosters.engine.scaler import LossScaler

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from colossalai.booster.plugin import HybridParallelPlugin
from torch import nn

from llama_dyt.boosters.clipping import norm_bound
from llama_dyt.boosters.layers.forward_pipeline import ForwardPipeline
from llama_dyt.boosters.parameter_state import ParameterState
from llama_dyt.boosters.runtime import EngineRuntime
from llama_dyt.boosters.step import Criterion
from llama_dyt.boosters.strategies.hybrid.clipping import leave_to_device
from llama_dyt.boosters.strategies.hybrid.plugin import build_plugin, grid_of
from llama_dyt.boosters.strategies.hybrid.state import MasterState
from llama_dyt.boosters.strategies.zero.runtime import ZeroRuntime
from llama_dyt.config.run import RunConfig
from llama_dyt.models.spec import ModelSpec


class _Pipeline(EngineRuntime):
    """How batches go through the stages, whatever the optimizer."""

    _style: str
    _micro_batch_size: int
    _forward: ForwardPipeline | None = None

    def pipeline_step(self, batch: dict[str, torch.Tensor], criterion: Criterion) -> torch.Tensor | None:
        batches = iter([batch])
        outputs = self._booster.execute_pipeline(batches, self.model, criterion, self.optimizer, return_loss=True)
        return outputs["loss"]

    def pipeline_evaluation(self, batch: dict[str, torch.Tensor], criterion: Criterion) -> torch.Tensor | None:
        if self._forward is None:
            self._forward = ForwardPipeline(self.plugin, self._style, self._micro_batch_size)
        return self._forward.run(self.model, batch, criterion)

    def _set_pipeline(self, run: RunConfig) -> None:
        self._style, self._micro_batch_size = run.booster.pp_style, run.booster.micro_batch_size


class Float32Runtime(_Pipeline):
    """HybridParallelNaiveOptimizer: Adam on the weights themselves."""

    def __init__(self, run: RunConfig, plugin: HybridParallelPlugin, model: nn.Module, optimizer: Any) -> None:
        super().__init__(plugin, model, optimizer, grid_of(plugin))
        self._set_pipeline(run)
        self.holds_back = True
        self.update = leave_to_device(self.optimizer, norm_bound(run), self.grid, clips="_clip_grad_norm")
        self.state = ParameterState(self.module, self.optimizer, self.grid, self.shapes, self.scaler)


class HalfPrecisionRuntime(_Pipeline):
    """HybridParallelAMPOptimizer: an fp32 master beside each weight."""

    def __init__(self, run: RunConfig, plugin: HybridParallelPlugin, model: nn.Module, optimizer: Any) -> None:
        super().__init__(plugin, model, optimizer, grid_of(plugin))
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

    def __init__(
        self, run: RunConfig, plugin: HybridParallelPlugin, model: nn.Module, optimizer: Any, stage: int
    ) -> None:
        super().__init__(run, plugin, model, optimizer, grid_of(plugin), stage)
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
    if stage:
        return HybridZeroRuntime(run, plugin, model, optimizer, stage)
    runtime = Float32Runtime if run.booster.mixed_precision == "fp32" else HalfPrecisionRuntime
    return runtime(run, plugin, model, optimizer)
