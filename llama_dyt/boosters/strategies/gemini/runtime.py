"""A run under Gemini, whose weights, masters and gradients lie in chunks."""

from __future__ import annotations

from llama_dyt.boosters.engine.scaler import LossScaler

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from llama_dyt.boosters.clipping import norm_bound
from llama_dyt.boosters.grid import Grid
from llama_dyt.boosters.runtime import EngineRuntime
from llama_dyt.boosters.strategies.gemini.plugin import ChunkedPlugin, build_gemini
from llama_dyt.boosters.strategies.gemini.state import GeminiState
from llama_dyt.config.run import RunConfig
from llama_dyt.models.spec import ModelSpec


class GeminiRuntime(EngineRuntime):
    """Whether and how to update is decided on the host, on whose word chunks come and go; gradients are reduced after
    every micro batch.

    Args:
        automatic: the engine plans what leaves the device.
    """

    def __init__(self, run: RunConfig, model: nn.Module, optimizer: Any, family: ModelSpec, automatic: bool) -> None:
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        plugin = build_gemini(run, family, num_parameters, norm_bound(run), automatic)
        super().__init__(plugin, model, optimizer, _grid_of(plugin))
        fp16 = run.booster.mixed_precision == "fp16"
        self.scaler = LossScaler(self.optimizer.mix_precision_mixin if fp16 else None)
        self.state = GeminiState(self.model, self.optimizer, self.grid, self.shapes, self.scaler)

    def drop_gradients(self) -> None:
        self.optimizer.drop_gradients()

    def _chunks(self) -> tuple[Any, ...]:
        """Those of working weights."""
        return self.model.chunk_manager.get_chunks(self.model.fp16_params)

    def working_weights(self) -> Iterator[torch.Tensor]:
        yield from super().working_weights()
        yield from (chunk.payload for chunk in self._chunks())

    def masters(self) -> Iterator[torch.Tensor]:
        yield from super().masters()
        yield from (chunk.paired_chunk.payload for chunk in self._chunks())

    def gradients(self) -> Iterator[torch.Tensor]:
        yield from super().gradients()
        yield from (chunk.grad_chunk.payload for chunk in self._chunks() if chunk.grad_chunk is not None)


def _grid_of(plugin: ChunkedPlugin) -> Grid:
    zero, replica, tensor = plugin.pg_mesh.coordinate()  # the mesh's axes are in this order
    return Grid(
        dp_rank=zero * plugin.extra_dp_size + replica,
        dp_size=plugin.dp_size,
        tp_rank=tensor,
        tp_size=plugin.tp_size,
        tp_group=plugin.tp_group,
    )
