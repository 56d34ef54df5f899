"""The state of a run under `fsdp.FsdpPlugin` as whole fp32 tensors under HuggingFace names.

Its own file beside `state.py` because the shards are other: rows of every parameter, which are the fp32 masters too,
and the moments beside them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from .fsdp import FsdpOptimizer, fsdp_modules, shard_group
from .grid import Grid
from .interface import MOMENTS, Read
from .scaler import LossScaler
from .state import adam_steps, set_adam_steps


class FsdpState:
    """`TrainingState` of the fsdp plugins.

    Rank r of n in a copy's group holds rows r·c to (r+1)·c of a parameter of d rows, c = ⌈d/n⌉: the last ranks have
    fewer rows, or none.
    """

    def __init__(self, module: nn.Module, optimizer: FsdpOptimizer, grid: Grid, scaler: LossScaler) -> None:
        self._modules: list[FSDPModule] = fsdp_modules(module)
        self._optimizer = optimizer
        self._grid = grid
        self._scaler = scaler
        self._reshard()
        # Of now, when all are sharded: in and after a forward pass the module has whole, temporary ones.
        self._parameters: dict[str, DTensor] = dict(module.named_parameters())
        self._mesh = next(iter(self._parameters.values())).device_mesh
        self._group = shard_group(self._mesh)

    def _reshard(self) -> None:
        """Free what a forward pass without a backward has left gathered; it would outlive a change of the shards."""
        for module in self._modules:
            module.reshard()

    def sizes(self) -> dict[str, int]:
        return {name: 4 * parameter.numel() for name, parameter in self._parameters.items()}

    def _rows_a_rank(self, parameter: DTensor) -> int:
        return -(-parameter.shape[0] // dist.get_world_size(self._group))

    def _own_rows(self, parameter: DTensor) -> slice:
        rows = self._rows_a_rank(parameter)
        start = min(dist.get_rank(self._group) * rows, parameter.shape[0])
        return slice(start, min(start + rows, parameter.shape[0]))

    def _whole(self, parameter: DTensor, own: torch.Tensor) -> torch.Tensor:
        """This rank's rows of a tensor of the parameter's shape → all of them, on the host. Collective."""
        rows = self._rows_a_rank(parameter)
        device = torch.device(self._mesh.device_type)
        part = torch.zeros((rows, *parameter.shape[1:]), device=device)
        part[: own.shape[0]].copy_(own)
        whole = torch.empty((rows * dist.get_world_size(self._group), *parameter.shape[1:]), device=device)
        dist.all_gather_into_tensor(whole, part, group=self._group)
        return whole[: parameter.shape[0]].cpu().clone()

    def gather(self, names: list[str]) -> Iterator[tuple[str, dict[str, torch.Tensor] | None]]:
        for name in names:
            parameter = self._parameters[name]
            own = parameter.to_local().detach()
            state = self._optimizer.optim.state.get(parameter, {})
            tensors = {"param": self._whole(parameter, own)}
            for moment in MOMENTS:
                tensors[moment] = self._whole(parameter, state.get(moment, torch.zeros_like(own)))
            yield name, tensors if self._grid.is_writer else None

    @torch.no_grad()
    def scatter(self, read: Read) -> None:
        self._reshard()
        for name, parameter in self._parameters.items():
            own = parameter.to_local()
            for key, whole in read(name).items():
                # A rank without rows reads nothing: not every file can give an empty slice.
                rows = whole[self._own_rows(parameter)] if own.numel() else own
                if key == "param":
                    own.copy_(rows)
                else:
                    # copy=True: a view of rows would keep the whole tensor alive.
                    self._optimizer.optim.state[parameter][key] = rows.to(own.device, torch.float32, copy=True)

    def gradients(self) -> Iterator[tuple[str, torch.Tensor | None]]:
        for name, parameter in self._parameters.items():
            whole = self._whole(parameter, parameter.grad.to_local() / self._scaler.scale)
            yield name, whole if self._grid.is_writer else None

    def optimizer_steps(self) -> int:
        return adam_steps(self._optimizer.optim)

    def set_optimizer_steps(self, steps: int) -> None:
        set_adam_steps(self._optimizer.optim, steps)
