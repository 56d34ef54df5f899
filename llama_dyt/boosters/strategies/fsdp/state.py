"""The state of a run under `FsdpPlugin` as whole fp32 tensors under HuggingFace names.

Shards are rows of every parameter, which are the fp32 masters too, and the moments beside them. They are gathered here
and not by torch's `get_model_state_dict`, which gives every rank whole tensors and the writer all of them at once (of
78 MB of weights on two ranks 157 MB more on the writer and 78 MB on the other, here 1 MB), and leaves moments, which
are no DTensors, cut.
"""

from __future__ import annotations

from llama_dyt.boosters.engine.scaler import LossScaler

from collections.abc import Hashable, Iterator, Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from llama_dyt.boosters.adam_state import adam_steps, moments_of, set_adam_steps
from llama_dyt.boosters.expert_parallel import ExpertGroups
from llama_dyt.boosters.grid import Grid
from llama_dyt.boosters.strategies.fsdp.plugin import FsdpOptimizer, fsdp_modules, shard_group
from llama_dyt.boosters.tensor_parts import gather_to_first
from llama_dyt.boosters.training_state import MOMENTS, OwnParts, Read


class FsdpState:
    """`TrainingState` of the fsdp plugins.

    Rank r of n in a copy's group holds rows r·c to (r+1)·c of a parameter of d rows, c = ⌈d/n⌉: the last ranks have
    fewer rows, or none. Experts may be cut along their second dimension instead, evenly.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: FsdpOptimizer,
        grid: Grid,
        scaler: LossScaler,
        spread: Mapping[str, ExpertGroups],
    ) -> None:
        """`spread`: of each parameter of experts that ranks share, by name, the groups of these."""
        self._modules: list[FSDPModule] = fsdp_modules(module)
        self._optimizer = optimizer
        self._grid = grid
        self._scaler = scaler
        self._reshard()
        # Of now, when all are sharded: in and after a forward pass the module has whole, temporary ones.
        self._parameters: dict[str, DTensor] = dict(module.named_parameters())
        self._mesh = next(iter(self._parameters.values())).device_mesh
        self._group = shard_group(self._mesh)
        self._experts = {id(self._parameters[name]): groups for name, groups in spread.items()}

    def _reshard(self) -> None:
        """Free what a forward pass without a backward has left gathered; it would outlive a change of the shards."""
        for module in self._modules:
            module.reshard()

    def sizes(self) -> dict[str, int]:
        sizes = {}
        for name, parameter in self._parameters.items():
            if parameter.requires_grad:
                experts = self._experts.get(id(parameter))
                sizes[name] = 4 * parameter.numel() * (experts.size if experts is not None else 1)
        return sizes

    def _group_of(self, parameter: DTensor) -> dist.ProcessGroup:
        """The ranks that a parameter is cut over."""
        experts = self._experts.get(id(parameter))
        return self._group if experts is None else experts.copies

    def _rows_a_rank(self, parameter: DTensor) -> int:
        return -(-parameter.shape[0] // dist.get_world_size(self._group_of(parameter)))

    def _own_part(self, parameter: DTensor) -> slice | tuple[slice, slice]:
        """Where in the whole one this rank's shard is."""
        experts = self._experts.get(id(parameter))
        first = 0 if experts is None else experts.rank * parameter.shape[0]
        if _dimension(parameter) == 1:
            width = parameter.to_local().shape[1]
            start = dist.get_rank(self._group_of(parameter)) * width
            return slice(first, first + parameter.shape[0]), slice(start, start + width)
        rows = self._rows_a_rank(parameter)
        start = min(dist.get_rank(self._group_of(parameter)) * rows, parameter.shape[0])
        return slice(first + start, first + min(start + rows, parameter.shape[0]))

    def _whole(self, parameter: DTensor, own: torch.Tensor) -> torch.Tensor | None:
        """This rank's rows of a tensor of the parameter's shape → all of them on the writer's host, None elsewhere.
        Collective within the first copy of the model; the others have nothing to give."""
        experts = self._experts.get(id(parameter))
        if experts is None and dist.get_global_rank(self._group, 0) > 0:
            return None
        along = _dimension(parameter)
        missing = 0 if along else self._rows_a_rank(parameter) - own.shape[0]
        padded = nn.functional.pad(own, (0, 0) * (own.dim() - 1) + (0, missing)) if missing else own
        parts = gather_to_first(padded.to(self._mesh.device_type), self._group_of(parameter))
        whole = None if parts is None else torch.cat(parts.unbind(), along)[: parameter.shape[0]]
        if experts is not None and whole is not None:  # the first copies of all experts
            every = gather_to_first(whole, experts.group)
            whole = None if every is None else every.flatten(0, 1)
        return None if whole is None else whole.cpu()

    def own_parts(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        for name, parameter in self._parameters.items():
            yield name, "param", parameter.to_local().detach()
            yield from moments_of(name, self._optimizer.optim.state.get(parameter, {}))

    def copies(self) -> Iterator[tuple[Hashable, str, torch.Tensor]]:
        for name, parameter in self._parameters.items():
            experts = self._experts.get(id(parameter))
            shard = dist.get_rank(self._group_of(parameter))
            whose = (f"shard {shard}", None if experts is None else experts.rank)
            yield whose, name, parameter.to_local().detach()
            for _, moment, own in moments_of(name, self._optimizer.optim.state.get(parameter, {})):
                yield whose, f"{moment} of {name}", own

    @torch.no_grad()
    def take_own_parts(self, parts: OwnParts) -> None:
        self._reshard()
        for name, parameter in self._parameters.items():
            own = parameter.to_local()
            for key, part in parts(name).items():
                if key == "param":
                    own.copy_(part)
                else:
                    self._optimizer.optim.state[parameter][key] = part.to(own.device, torch.float32, copy=True)

    def gather(self, names: list[str], lend: bool = False) -> Iterator[tuple[str, dict[str, torch.Tensor] | None]]:
        for name in names:
            parameter = self._parameters[name]
            own = parameter.to_local().detach()
            state = self._optimizer.optim.state.get(parameter, {})
            tensors = {"param": self._whole(parameter, own)}
            for moment in MOMENTS:
                tensors[moment] = self._whole(parameter, state[moment] if moment in state else torch.zeros_like(own))
            yield name, tensors if self._grid.is_writer else None

    @torch.no_grad()
    def scatter(self, read: Read) -> None:
        self._reshard()
        for name, parameter in self._parameters.items():
            own = parameter.to_local()
            for key, whole in read(name).items():
                # A rank without rows reads nothing: not every file can give an empty slice.
                rows = whole[self._own_part(parameter)] if own.numel() else own
                if key == "param":
                    own.copy_(rows)
                else:
                    # copy=True: a view of rows would keep the whole tensor alive.
                    self._optimizer.optim.state[parameter][key] = rows.to(own.device, torch.float32, copy=True)

    def gradients(self) -> Iterator[tuple[str, torch.Tensor | None]]:
        for name in self.sizes():
            parameter = self._parameters[name]
            yield name, self._whole(parameter, parameter.grad.to_local() / self._scaler.scale)

    def optimizer_steps(self) -> int:
        return adam_steps(self._optimizer.optim)

    def set_optimizer_steps(self, steps: int) -> None:
        set_adam_steps(self._optimizer.optim, steps)


def _dimension(parameter: DTensor) -> int:
    """Along which a parameter is cut."""
    return next(placement.dim for placement in parameter.placements if placement.is_shard())
