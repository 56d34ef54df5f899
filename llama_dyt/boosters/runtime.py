"""A model and its optimizer as a strategy has spread them over the ranks: what `Boosted` asks, whatever is behind it.

The defaults are those of a model whose parameters are whole and of an Adam over fp32 masters; a strategy overrides what
is otherwise with it.
"""

from __future__ import annotations

from llama_dyt.boosters.engine.scaler import LossScaler

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from colossalai.booster import Booster
from colossalai.booster.plugin.plugin_base import Plugin
from torch import nn

from llama_dyt.boosters.clipping import Update
from llama_dyt.boosters.expert_parallel import whole_shape
from llama_dyt.boosters.grid import Grid
from llama_dyt.boosters.step import Criterion
from llama_dyt.boosters.training_state import MOMENTS, TrainingState


class Runtime:
    """What a strategy's `boost` returns.

    Attributes:
        model: what is called, with inputs and labels, for a loss.
        module: the HuggingFace module in it, or that itself; parameters may be cut, freed or held by other stages.
        optimizer: with `backward(loss)`, `step()`, `zero_grad()`, `get_grad_norm()` (of the last step's whole gradient,
            loss scale included), `param_groups`, and `optim`, the Adam in it.
        grid: where this process stands.
        state: whole tensors by name, for checkpoints; made by the strategy's own class.
        scaler: the fp16 loss scaler.
        update: what decides on the device whether and how a step updates; None where the host does.
    """

    state: TrainingState

    def __init__(self, model: nn.Module, module: nn.Module, optimizer: Any, grid: Grid) -> None:
        self.model = model
        self.module = module
        self.optimizer = optimizer
        self.grid = grid
        self.scaler = LossScaler(None)
        self.update: Update | None = None

    # --- a step --------------------------------------------------------------------------------------------------

    def accumulation(self, last: bool) -> AbstractContextManager[None]:
        """What forward and backward of one micro batch run in: before the `last` of a step gradients may be kept from
        the other ranks, and added up."""
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        self.optimizer.backward(loss)

    def pipeline_step(self, batch: dict[str, torch.Tensor], criterion: Criterion) -> torch.Tensor | None:
        """Forward and backward of a whole step through the pipeline → its loss, on the ranks that hold the head."""
        raise NotImplementedError(f"{type(self).__name__} has no pipeline")

    def pipeline_evaluation(self, batch: dict[str, torch.Tensor], criterion: Criterion) -> torch.Tensor | None:
        """The same without backward."""
        raise NotImplementedError(f"{type(self).__name__} has no pipeline")

    def after_evaluation(self) -> None:
        """Called after forward passes that no backward follows."""

    def drop_gradients(self) -> None:
        """Called in the stead of the optimizer's step: nothing changes, and the next backward begins anew."""
        self.optimizer.zero_grad()

    # --- what this rank holds, for `state_bytes` -----------------------------------------------------------------

    def working_weights(self) -> Iterator[torch.Tensor]:
        """What forward and backward work with."""
        yield from (parameter.data for parameter in self.module.parameters())

    def masters(self) -> Iterator[torch.Tensor]:
        """fp32 weights; they may be the working ones."""
        for group in self.optimizer.optim.param_groups:
            yield from (parameter.data for parameter in group["params"])

    def moments(self) -> Iterator[torch.Tensor]:
        """Adam's."""
        for state in self.optimizer.optim.state.values():
            yield from (state[moment] for moment in MOMENTS if moment in state)

    def gradients(self) -> Iterator[torch.Tensor]:
        """What there is between backward and the optimizer's step."""
        yield from (parameter.grad for parameter in self.module.parameters() if parameter.grad is not None)


class EngineRuntime(Runtime):
    """A runtime over a Colossal-AI plugin.

    Args:
        model, optimizer: not yet boosted; the plugin wraps and changes them.

    Attributes:
        shapes: name → whole shape of each parameter, from before it was cut; also the order of the names.
        holds_back: gradients stay with a rank until the last micro batch of a step, as the plugin's `no_sync` has them.
    """

    def __init__(self, plugin: Plugin, model: nn.Module, optimizer: Any, grid: Grid) -> None:
        self.shapes = {name: whole_shape(parameter) for name, parameter in model.named_parameters()}
        self.plugin = plugin
        self.holds_back = False
        self._booster = Booster(plugin=plugin)
        model, optimizer, *_ = self._booster.boost(model, optimizer)
        optimizer._verbose = optimizer.verbose = False  # a skipped step is told once, by the trainer
        super().__init__(model, model.unwrap(), optimizer, grid)

    def accumulation(self, last: bool) -> AbstractContextManager[None]:
        if last or not self.holds_back:
            return nullcontext()
        return self._booster.no_sync(self.model, self.optimizer)
