"""The state of a Gemini run as whole fp32 tensors under HuggingFace names: Gemini's `interface.TrainingState`.

Its own file because everything here is about where a parameter lies in a chunk: chunks are flat, hold many parameters,
and are cut over the ranks at places that have nothing to do with the parameters' borders.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from colossalai.accelerator import get_accelerator
from colossalai.zero.gemini.chunk import Chunk
from torch import nn

from .cuts import TensorParallelCut
from .grid import Grid
from .interface import MOMENTS, Read
from .scaler import LossScaler
from .state import adam_steps, set_adam_steps

_FP32_BYTES = 4


def part_on_rank(chunk: Chunk, tensor: torch.Tensor, rank: int) -> tuple[int, int]:
    """Which flat elements [begin, end) of a tensor the rank holds; begin >= end if none."""
    info = chunk.tensors_info[tensor]
    if chunk.keep_gathered:
        return 0, info.end - info.offset
    first = rank * chunk.shard_size
    begin, end = max(info.offset, first), min(info.end, first + chunk.shard_size)
    return begin - info.offset, end - info.offset


def part_of_payload(chunk: Chunk, tensor: torch.Tensor, payload_of: Chunk | None = None) -> torch.Tensor:
    """This rank's part of a tensor as a flat view into the chunk's memory, or into that of a chunk laid out alike."""
    begin, end = part_on_rank(chunk, tensor, chunk.pg_rank)
    payload = (payload_of or chunk).payload
    if begin >= end:
        return payload[:0]
    start = chunk.tensors_info[tensor].offset + begin - (0 if chunk.keep_gathered else chunk.shard_begin)
    return payload[start : start + end - begin]


class GeminiState:
    """See `interface.TrainingState`. Call between steps, when chunks are at rest.

    A parameter may be cut along one dimension by tensor parallelism; what that leaves lies in a chunk, which is cut
    over the ZeRO group and the same in every extra data-parallel replica.
    """

    def __init__(
        self, model: Any, optimizer: Any, grid: Grid, shapes: dict[str, torch.Size], scaler: LossScaler
    ) -> None:
        """
        Args:
            model, optimizer: ChunkedModel and ChunkedOptimizer, as boosted.
            shapes: name → whole shape, taken from the model before it was boosted; also the order of the names.
        """
        self._model = model
        self._optimizer = optimizer
        self._grid = grid
        self._scaler = scaler
        self._manager = model.chunk_manager
        self._device = get_accelerator().get_current_device()
        masters = dict(zip(map(id, model.fp16_params), model.fp32_params, strict=True))
        self._working: dict[str, nn.Parameter] = {}
        self._masters: dict[str, torch.Tensor] = {}
        self._cuts: dict[str, TensorParallelCut] = {}
        local = dict(model.module.named_parameters())
        for name, shape in shapes.items():
            self._working[name] = local[name]
            self._masters[name] = masters[id(local[name])]
            self._cuts[name] = TensorParallelCut(local[name], shape, grid)
        # The inner optimizer's parameters are flat stand-ins, one a parameter that this rank holds a part of.
        self._stand_ins = {
            id(parameter): optimizer.id_to_fake_params.get(number)
            for number, parameter in optimizer.id_to_real_params.items()
        }

    def _stand_in(self, name: str) -> nn.Parameter | None:
        return self._stand_ins.get(id(self._working[name]))

    def sizes(self) -> dict[str, int]:
        return {name: cut.whole.numel() * _FP32_BYTES for name, cut in self._cuts.items()}

    def _whole(self, name: str, chunk: Chunk, tensor: torch.Tensor, part: torch.Tensor) -> torch.Tensor | None:
        """Each rank's flat part → the whole tensor on the writer's host, None elsewhere. Collective."""
        if chunk.extra_dp_group is not None and dist.get_rank(chunk.extra_dp_group) > 0:
            return None
        joined = self._join_chunk(chunk, tensor, part)
        if joined is None:
            return None
        cut = self._cuts[name]
        if cut.dimension is not None:
            joined = cut.join(joined.view(cut.shape).to(self._device)).cpu()
        return joined.view(cut.whole) if self._grid.is_writer else None

    def _join_chunk(self, chunk: Chunk, tensor: torch.Tensor, part: torch.Tensor) -> torch.Tensor | None:
        """Each rank's flat part → the flat tensor on the host of the ZeRO group's first rank, None elsewhere.

        Parts are sent, not summed into zeros: a sum would turn -0.0 into 0.0.
        """
        group, rank = chunk.torch_pg, chunk.pg_rank
        writer = dist.get_global_rank(group, 0)
        whole = torch.empty(tensor.numel(), dtype=torch.float32) if rank == 0 else None
        for owner in range(1 if chunk.keep_gathered else chunk.pg_size):
            begin, end = part_on_rank(chunk, tensor, owner)
            if begin >= end:
                continue
            if owner == 0:
                if rank == 0:
                    whole[begin:end].copy_(part)
            elif rank == owner:
                dist.send(part.to(self._device, torch.float32).contiguous(), dst=writer, group=group)
            elif rank == 0:
                received = torch.empty(end - begin, dtype=torch.float32, device=self._device)
                dist.recv(received, src=dist.get_global_rank(group, owner), group=group)
                whole[begin:end].copy_(received)
        return whole

    def gather(self, names: list[str]) -> Iterator[tuple[str, dict[str, torch.Tensor] | None]]:
        for name in names:
            master = self._masters[name]
            chunk = self._manager.get_chunk(master)
            part = part_of_payload(chunk, master)
            state = self._optimizer.optim.state.get(self._stand_in(name), {})
            tensors = {"param": self._whole(name, chunk, master, part)}
            for moment in MOMENTS:
                tensors[moment] = self._whole(name, chunk, master, state.get(moment, torch.zeros_like(part)))
            yield name, tensors if self._grid.is_writer else None

    @torch.no_grad()
    def scatter(self, read: Read) -> None:
        for name, master in self._masters.items():
            stand_in = self._stand_in(name)
            if stand_in is None:
                continue
            chunk = self._manager.get_chunk(master)
            begin, end = part_on_rank(chunk, master, chunk.pg_rank)
            for key, whole in read(name).items():
                part = self._cuts[name].read(whole, begin, end)
                if key == "param":
                    part_of_payload(chunk, master).copy_(part)
                else:
                    self._optimizer.optim.state[stand_in][key] = part.to(chunk.payload.device, torch.float32, copy=True)
        for chunk in self._manager.get_chunks(self._model.fp16_params):
            self._round_masters_into(chunk)

    def _round_masters_into(self, chunk: Chunk) -> None:
        """Make a chunk of working weights the rounded masters. Not `Chunk.optim_update`, which expects both chunks in
        one place, as they are only after a first step."""
        chunk.payload.copy_(chunk.paired_chunk.payload)
        chunk.optim_sync_flag = True  # nothing is waiting to be brought over from the masters
        chunk.cpu_vis_flag = not chunk.is_gathered and chunk.cuda_shard is None  # a pinned copy would be stale

    def gradients(self) -> Iterator[tuple[str, torch.Tensor | None]]:
        for name, parameter in self._working.items():
            chunk = self._manager.get_chunk(parameter)
            # Without accumulation the reduced gradients take the place of the weights they belong to.
            holder = chunk if self._manager.reuse_fp16_chunk else chunk.grad_chunk
            part = part_of_payload(chunk, parameter, payload_of=holder).float() / self._scaler.scale
            yield name, self._whole(name, chunk, parameter, part)

    def optimizer_steps(self) -> int:
        return adam_steps(self._optimizer.optim)

    def set_optimizer_steps(self, steps: int) -> None:
        set_adam_steps(self._optimizer.optim, steps)
