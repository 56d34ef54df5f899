"""The state of a run under the hybrid plugin in half precision without ZeRO: an fp32 master beside each weight."""

from __future__ import annotations

import torch
from torch import nn

from llama_dyt.boosters.parameter_state import ParameterState


class MasterState(ParameterState):
    """`TrainingState` of the engine's MixedPrecisionOptimizer."""

    def master_of(self, parameter: nn.Parameter) -> torch.Tensor:
        return self._optimizer.working_to_master_map[parameter]
