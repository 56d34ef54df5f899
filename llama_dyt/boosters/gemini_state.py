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


def write_into_chunk(chunk: Chunk, tensor: torch.Tensor, whole: torch.Tensor) -> None:
    """Copy this rank's part of a whole tensor into the chunk, in the chunk's dtype."""
    begin, end = part_on_rank(chunk, tensor, chunk.pg_rank)
    if begin < end:
        part_of_payload(chunk, tensor).copy_(whole.reshape(-1)[begin:end])


class GeminiState:
    """See `interface.TrainingState`. Rank 0 is the writer; call between steps, when chunks are at rest."""

    def __init__(self, model: Any, optimizer: Any, scaler: LossScaler) -> None:
        """`model`, `optimizer`: ChunkedModel and ChunkedOptimizer, as boosted."""
        self._model = model
        self._optimizer = optimizer
        self._scaler = scaler
        self._manager = model.chunk_manager
        self._device = get_accelerator().get_current_device()
        masters = dict(zip(map(id, model.fp16_params), model.fp32_params, strict=True))
        self._working: dict[str, nn.Parameter] = {}
        self._masters: dict[str, torch.Tensor] = {}
        for name, parameter in model.module.named_parameters():
            if id(parameter) in masters:
                self._working[name] = parameter
                self._masters[name] = masters[id(parameter)]
        # The inner optimizer's parameters are flat stand-ins, one a parameter that this rank holds a part of.
        self._stand_ins = {
            id(parameter): optimizer.id_to_fake_params.get(number)
            for number, parameter in optimizer.id_to_real_params.items()
        }

    def _stand_in(self, name: str) -> nn.Parameter | None:
        return self._stand_ins.get(id(self._working[name]))

    def sizes(self) -> dict[str, int]:
        return {name: master.numel() * _FP32_BYTES for name, master in self._masters.items()}

    def _whole(self, chunk: Chunk, tensor: torch.Tensor, part: torch.Tensor) -> torch.Tensor | None:
        """Each rank's flat part → the whole tensor on the host of rank 0, None elsewhere. Collective.

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
        return whole.view(tensor.shape) if whole is not None else None

    def gather(self, names: list[str]) -> Iterator[tuple[str, dict[str, torch.Tensor] | None]]:
        for name in names:
            master = self._masters[name]
            chunk = self._manager.get_chunk(master)
            part = part_of_payload(chunk, master)
            state = self._optimizer.optim.state.get(self._stand_in(name), {})
            tensors = {"param": self._whole(chunk, master, part)}
            for moment in MOMENTS:
                tensors[moment] = self._whole(chunk, master, state.get(moment, torch.zeros_like(part)))
            yield name, tensors if chunk.pg_rank == 0 else None

    @torch.no_grad()
    def scatter(self, read: Read) -> None:
        for name, master in self._masters.items():
            stand_in = self._stand_in(name)
            if stand_in is None:
                continue
            chunk = self._manager.get_chunk(master)
            begin, end = part_on_rank(chunk, master, chunk.pg_rank)
            for key, whole in read(name).items():
                if key == "param":
                    write_into_chunk(chunk, master, whole[:])
                else:
                    part = whole[:].reshape(-1)[begin:end]
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
            yield name, self._whole(chunk, parameter, part)

    def optimizer_steps(self) -> int:
        return adam_steps(self._optimizer.optim)

    def set_optimizer_steps(self, steps: int) -> None:
        set_adam_steps(self._optimizer.optim, steps)
