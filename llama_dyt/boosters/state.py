"""The state of a boosted run as whole fp32 tensors under HuggingFace names, for the ZeRO and hybrid optimizers.

The engine's own checkpoints hold half-precision weights and overwrite the fp32 masters with them on load, so a resumed
run differs. Here the masters and moments themselves are gathered to, and filled from, whole tensors: a checkpoint is
exact, and the same whichever layout wrote it. Gemini's counterpart is `gemini.GeminiState`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from colossalai.amp.naive_amp.mixed_precision_optimizer import MixedPrecisionOptimizer
from colossalai.zero import LowLevelZeroOptimizer
from torch import nn

from .cuts import TensorParallelCut
from .grid import Grid
from .interface import MOMENTS, Read, Readable
from .scaler import LossScaler


class ShardedState:
    """`TrainingState` of LowLevelZeroOptimizer and HybridParallel{Naive,AMP,Zero}Optimizer.

    A parameter may be cut along one dimension over the tensor-parallel group (and padded there, for a vocabulary), its
    master and moments flattened, padded and cut again over the data-parallel group by ZeRO, and held by one pipeline
    stage alone; but for a head tied to the embedding, of which the last stage has a copy that nobody else reads.
    """

    def __init__(
        self, module: nn.Module, optimizer: Any, grid: Grid, shapes: dict[str, torch.Size], scaler: LossScaler
    ):
        """`shapes`: name → whole shape, taken from the model before it was boosted; also the order of the names."""
        self._optimizer = optimizer
        self._grid = grid
        self._shapes = shapes
        self._scaler = scaler
        local = {name: parameter for name, parameter in module.named_parameters() if name in shapes}
        self._parameters = {name: local[name] for name in shapes if name in local}
        self._copies = _tied_copies(module, shapes)
        self._parameters |= self._copies
        self._cuts = {name: TensorParallelCut(held, shapes[name], grid) for name, held in self._parameters.items()}

    def sizes(self) -> dict[str, int]:
        return {name: 4 * self._shapes[name].numel() for name in self._parameters if name not in self._copies}

    # --- where a parameter's master and moments live -------------------------------------------------------------

    def _master(self, parameter: nn.Parameter) -> torch.Tensor:
        optimizer = self._optimizer
        if isinstance(optimizer, LowLevelZeroOptimizer):
            return optimizer.working_to_master_param[id(parameter)]
        if isinstance(optimizer, MixedPrecisionOptimizer):
            return optimizer.working_to_master_map[parameter]
        return parameter

    def _data_group(self, parameter: nn.Parameter) -> Any:
        """The group over which ZeRO cut this parameter's master; None where it is whole."""
        if isinstance(self._optimizer, LowLevelZeroOptimizer):
            return self._optimizer.param_to_pg[parameter]
        return None

    def _whole(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """This rank's part of a parameter-shaped fp32 tensor → the whole of it, on the host. Collective."""
        parameter = self._parameters[name]
        group = self._data_group(parameter)
        device = parameter.device
        tensor = tensor.detach()
        if group is not None:
            part = tensor.to(device).flatten().contiguous()
            flat = torch.empty(part.numel() * dist.get_world_size(group), dtype=part.dtype, device=device)
            dist.all_gather_into_tensor(flat, part, group=group)
            tensor = flat[: parameter.numel()].view(parameter.shape)
        return self._join_tensor_parallel(name, tensor)

    def _join_tensor_parallel(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        return self._cuts[name].join(tensor).cpu().clone()

    def _master_part(self, name: str, whole: Readable) -> torch.Tensor:
        """What of a whole tensor this rank's master and moments hold: ZeRO's flat slice of the tensor-parallel part, or
        that part itself where ZeRO does not cut."""
        parameter, cut = self._parameters[name], self._cuts[name]
        group = self._data_group(parameter)
        if group is None:
            return cut.read(whole)
        size = -(-parameter.numel() // dist.get_world_size(group))
        first = min(size * dist.get_rank(group), parameter.numel())
        last = min(first + size, parameter.numel())
        part = cut.read(whole, first, last)
        return nn.functional.pad(part, (0, size - len(part)))

    # --- the interface -------------------------------------------------------------------------------------------

    def gather(self, names: list[str]) -> Iterator[tuple[str, dict[str, torch.Tensor] | None]]:
        for name in names:
            master = self._master(self._parameters[name])
            state = self._optimizer.optim.state.get(master, {})
            tensors = {"param": self._whole(name, master.float())}
            for moment in MOMENTS:
                tensors[moment] = self._whole(name, state.get(moment, torch.zeros_like(master, dtype=torch.float32)))
            yield name, tensors if self._grid.is_writer else None

    def scatter(self, read: Read) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                master = self._master(parameter)
                for key, whole in read(name).items():
                    if key == "param":
                        part = self._cuts[name].read(whole).view(parameter.shape)
                        parameter.data.copy_(part)  # rounds to the working precision
                        if master is not parameter:
                            master.data.copy_(self._master_part(name, whole).view(master.shape))
                    else:
                        value = self._master_part(name, whole).to(master.device, torch.float32)
                        self._optimizer.optim.state[master][key] = value.clone().view(master.shape)

    def gradients(self) -> Iterator[tuple[str, torch.Tensor | None]]:
        for name in self.sizes():
            parameter = self._parameters[name]
            if isinstance(self._optimizer, LowLevelZeroOptimizer):
                gradient = self._optimizer.get_param_grad(parameter)
            else:
                gradient = parameter.grad
            whole = self._join_tensor_parallel(name, gradient.float() / self._scaler.scale)
            yield name, whole if self._grid.is_writer else None

    def optimizer_steps(self) -> int:
        return adam_steps(self._optimizer.optim)

    def set_optimizer_steps(self, steps: int) -> None:
        set_adam_steps(self._optimizer.optim, steps)


def _tied_copies(module: nn.Module, shapes: dict[str, torch.Size]) -> dict[str, nn.Parameter]:
    """Parameters of this stage that a whole model has by another name, by that name: {the embedding's: the head's}."""
    tied = getattr(module, "all_tied_weights_keys", None) or {}
    return {tied[name]: held for name, held in module.named_parameters() if name not in shapes and name in tied}


def adam_steps(adam: torch.optim.Optimizer) -> int:
    """Steps an Adam has taken: the same for all of its parameters, and 0 before it has any state."""
    return next((int(state.get("step", 0)) for state in adam.state.values()), 0)


def set_adam_steps(adam: torch.optim.Optimizer, steps: int) -> None:
    """Set the step count of every parameter that has a state."""
    for state in adam.state.values():
        state["step"] = steps
