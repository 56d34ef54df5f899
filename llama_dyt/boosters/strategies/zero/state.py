"""The state of a run under the engine's ZeRO: masters are flattened, padded and cut over the data-parallel ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from llama_dyt.boosters.parameter_state import ParameterState


class ZeroState(ParameterState):
    """`TrainingState` of LowLevelZeroOptimizer, alone or within the hybrid plugin."""

    def master_of(self, parameter: nn.Parameter) -> torch.Tensor:
        return self._optimizer.working_to_master_param[id(parameter)]

    def data_group_of(self, parameter: nn.Parameter) -> dist.ProcessGroup:
        return self._optimizer.param_to_pg[parameter]

    def gradient_of(self, parameter: nn.Parameter) -> torch.Tensor:
        return self._optimizer.get_param_grad(parameter)
