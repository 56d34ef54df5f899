"""The state of a boosted run as whole fp32 tensors under HuggingFace names, where each parameter has a master.

The engine's own checkpoints hold half-precision weights and overwrite the fp32 masters with them on load, so a resumed
run differs. Here the masters and moments themselves are gathered to, and filled from, whole tensors: a checkpoint is
exact, and the same whichever layout wrote it.
"""

from __future__ import annotations

from llama_dyt.boosters.engine.scaler import LossScaler

from collections.abc import Hashable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from llama_dyt.boosters.adam_state import adam_steps, moments_of, set_adam_steps
from llama_dyt.boosters.grid import Grid
from llama_dyt.boosters.tensor_parts import TensorParallelPart, copied_to_host, gather_to_first
from llama_dyt.boosters.training_state import MOMENTS, OwnParts, Read, Readable


class ParameterState:
    """`TrainingState` of optimizers that keep a master a parameter; here the parameter itself, in fp32.

    What is frozen has neither master nor moments, and is filled but never gathered.

    A parameter may be cut along one dimension over the tensor-parallel group (and padded there, for a vocabulary), its
    master and moments flattened, padded and cut again over `data_group_of`, and held by one pipeline stage alone; but
    for a head tied to the embedding, of which the last stage has a copy that nobody else reads.
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
        self._trained = [name for name, held in self._parameters.items() if held.requires_grad]
        self._parts = {name: TensorParallelPart(held, shapes[name], grid) for name, held in self._parameters.items()}

    def sizes(self) -> dict[str, int]:
        return {name: 4 * self._shapes[name].numel() for name in self._trained if name not in self._copies}

    # --- where a parameter's master and moments live -------------------------------------------------------------

    def master_of(self, parameter: nn.Parameter) -> torch.Tensor:
        return parameter

    def data_group_of(self, parameter: nn.Parameter) -> dist.ProcessGroup | None:
        """The group over which this parameter's master is flattened and cut; None where it is whole."""
        return None

    def gradient_of(self, parameter: nn.Parameter) -> torch.Tensor:
        """Whole, but for tensor parallelism; loss scale included."""
        return parameter.grad

    def _whole(self, name: str, own: torch.Tensor, lend: bool = False) -> torch.Tensor | None:
        """This rank's part of a parameter-shaped fp32 tensor → the whole on the writer's host, None elsewhere.
        Collective. `lend`: see `TrainingState.gather`."""
        parameter = self._parameters[name]
        group = self.data_group_of(parameter)
        part: torch.Tensor | None = own.detach()
        if group is not None:
            parts = gather_to_first(part.to(parameter.device).flatten(), group)
            part = None if parts is None else parts.view(-1)[: parameter.numel()].view(parameter.shape)
        whole = self._join_tensor_parallel(name, part)
        return whole if lend else copied_to_host(whole, own)

    def _join_tensor_parallel(self, name: str, part: torch.Tensor | None) -> torch.Tensor | None:
        """Of the ranks that hold the same, the first ones alone give theirs."""
        if part is None or self._parts[name].copy_rank or self._grid.sp_rank:
            return None
        return self._parts[name].join(part)

    def _master_part(self, name: str, whole: Readable) -> torch.Tensor:
        """What of a whole tensor this rank's master and moments hold: the flat slice of the tensor-parallel part, or
        that part itself where no data group cuts it."""
        parameter, part = self._parameters[name], self._parts[name]
        group = self.data_group_of(parameter)
        if group is None:
            return part.read(whole)
        size = -(-parameter.numel() // dist.get_world_size(group))
        first = min(size * dist.get_rank(group), parameter.numel())
        last = min(first + size, parameter.numel())
        own = part.read(whole, first, last)
        return nn.functional.pad(own, (0, size - len(own)))

    # --- the interface -------------------------------------------------------------------------------------------

    def own_parts(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        for name, parameter in self._parameters.items():
            master = self.master_of(parameter) if parameter.requires_grad else parameter
            yield name, "param", master.detach()
            yield from moments_of(name, self._optimizer.optim.state.get(master, {}))

    def copies(self) -> Iterator[tuple[Hashable, str, torch.Tensor]]:
        for name, parameter in self._parameters.items():
            whose = (f"stage {self._grid.pp_rank}", self._parts[name].whose)
            yield whose, name, parameter.detach()
            if not parameter.requires_grad:
                continue
            master, group = self.master_of(parameter), self.data_group_of(parameter)
            whose = whose if group is None else (*whose, f"slice {dist.get_rank(group)}")
            if master is not parameter:
                yield whose, f"master of {name}", master.detach()
            for _, moment, own in moments_of(name, self._optimizer.optim.state.get(master, {})):
                yield whose, f"{moment} of {name}", own

    @torch.no_grad()
    def take_own_parts(self, parts: OwnParts) -> None:
        for name, parameter in self._parameters.items():
            given = parts(name)
            if not given:
                continue
            master = self.master_of(parameter) if parameter.requires_grad else parameter
            for key, part in given.items():
                if key == "param":
                    master.data.copy_(part)
                else:
                    self._optimizer.optim.state[master][key] = part.to(master.device, torch.float32, copy=True)
            if master is not parameter:
                parameter.data.copy_(self._rounded(parameter, master.detach()))

    def _rounded(self, parameter: nn.Parameter, master: torch.Tensor) -> torch.Tensor:
        """What a parameter is in the working precision, from this rank's part of its master. Collective where a data
        group cuts that."""
        own, group = master.to(parameter.device, parameter.dtype), self.data_group_of(parameter)
        if group is None:
            return own.view(parameter.shape)
        parts = own.new_empty((dist.get_world_size(group), own.numel()))
        # As bytes: not every backend knows all types of numbers.
        dist.all_gather(list(parts.view(torch.uint8).unbind()), own.flatten().view(torch.uint8), group=group)
        return parts.view(-1)[: parameter.numel()].view(parameter.shape)

    def gather(self, names: list[str], lend: bool = False) -> Iterator[tuple[str, dict[str, torch.Tensor] | None]]:
        for name in names:
            master = self.master_of(self._parameters[name])
            state = self._optimizer.optim.state.get(master, {})
            tensors = {"param": self._whole(name, master.float(), lend)}
            for moment in MOMENTS:
                own = state[moment] if moment in state else torch.zeros_like(master, dtype=torch.float32)
                tensors[moment] = self._whole(name, own, lend)
            yield name, tensors if self._grid.is_writer else None

    def scatter(self, read: Read) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                master = self.master_of(parameter) if parameter.requires_grad else parameter
                for key, whole in read(name).items():
                    if key == "param":
                        part = self._parts[name].read(whole).view(parameter.shape)
                        parameter.data.copy_(part)  # rounds to the working precision
                        if master is not parameter:
                            master.data.copy_(self._master_part(name, whole).view(master.shape))
                    else:
                        value = self._master_part(name, whole).to(master.device, torch.float32)
                        self._optimizer.optim.state[master][key] = value.clone().view(master.shape)

    def gradients(self) -> Iterator[tuple[str, torch.Tensor | None]]:
        for name in self.sizes():
            parameter = self._parameters[name]
            whole = self._join_tensor_parallel(name, self.gradient_of(parameter).float() / self._scaler.scale)
            yield name, None if whole is None else whole.cpu()

    def optimizer_steps(self) -> int:
        return adam_steps(self._optimizer.optim)

    def set_optimizer_steps(self, steps: int) -> None:
        set_adam_steps(self._optimizer.optim, steps)


def _tied_copies(module: nn.Module, shapes: dict[str, torch.Size]) -> dict[str, nn.Parameter]:
    """Parameters of this stage that a whole model has by another name, by that name: {the embedding's: the head's}."""
    tied = getattr(module, "all_tied_weights_keys", None) or {}
    return {tied[name]: held for name, held in module.named_parameters() if name not in shapes and name in tied}
