"""The state of a Gemini run as whole fp32 tensors under HuggingFace names: where a parameter lies in its chunk.

Chunks are flat, hold many parameters, and are cut over the ranks at places that have nothing to do with the parameters'
borders.
"""

from __future__ import annotations

from llama_dyt.boosters.engine.scaler import LossScaler

from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from colossalai.accelerator import get_accelerator
from colossalai.zero.gemini.chunk import Chunk
from torch import nn

from llama_dyt.boosters.adam_state import adam_steps, moments_of, set_adam_steps
from llama_dyt.boosters.grid import Grid
from llama_dyt.boosters.tensor_parts import TensorParallelPart, gather_to_first
from llama_dyt.boosters.training_state import MOMENTS, OwnParts, Read

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
    """See `training_state.TrainingState`. Call between steps, when chunks are at rest.

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
        self._parts: dict[str, TensorParallelPart] = {}
        local = dict(model.module.named_parameters())
        for name, shape in shapes.items():
            self._working[name] = local[name]
            self._masters[name] = masters[id(local[name])]
            self._parts[name] = TensorParallelPart(local[name], shape, grid)
        # The inner optimizer's parameters are flat stand-ins, one a parameter that this rank holds a part of.
        self._stand_ins = {
            id(parameter): optimizer.id_to_fake_params.get(number)
            for number, parameter in optimizer.id_to_real_params.items()
        }

    def _stand_in(self, name: str) -> nn.Parameter | None:
        return self._stand_ins.get(id(self._working[name]))

    def sizes(self) -> dict[str, int]:
        return {name: cut.whole.numel() * _FP32_BYTES for name, cut in self._parts.items()}

    def _gather(
        self, tensors: dict[str, torch.Tensor], parts_of: Callable[[str], dict[str, torch.Tensor]]
    ) -> Iterator[tuple[str, dict[str, torch.Tensor] | None]]:
        """Whole tensors on the writer's host, None elsewhere, a chunk at a time. Collective.

        Args:
            tensors: name → what stands for the parameter in its chunk, in the order in which they are wanted.
            parts_of: name → this rank's flat parts, fp32, the same keys for every name and rank.
        """
        chunks = {name: self._manager.get_chunk(tensor) for name, tensor in tensors.items()}
        gathered: dict[str, dict[str, torch.Tensor] | None] = {}
        for name, chunk in chunks.items():
            if name not in gathered:
                together = {other: tensors[other] for other, home in chunks.items() if home is chunk}
                gathered.update(self._gather_chunk(chunk, together, parts_of))
            yield name, gathered.pop(name)

    def _gather_chunk(
        self, chunk: Chunk, tensors: dict[str, torch.Tensor], parts_of: Callable[[str], dict[str, torch.Tensor]]
    ) -> dict[str, dict[str, torch.Tensor] | None]:
        """`_gather` of tensors that lie in one chunk: a message a rank that holds some of them."""
        nothing = dict.fromkeys(tensors)
        if chunk.extra_dp_group is not None and dist.get_rank(chunk.extra_dp_group) > 0:
            return nothing
        flat = self._join_chunk(chunk, tensors, parts_of)
        return nothing if flat is None else self._join_tensor_parallel(flat)

    def _join_chunk(
        self, chunk: Chunk, tensors: dict[str, torch.Tensor], parts_of: Callable[[str], dict[str, torch.Tensor]]
    ) -> dict[str, dict[str, torch.Tensor]] | None:
        """Each rank's flat parts → flat tensors on the host of the ZeRO group's first rank, None elsewhere.

        Parts are sent, not summed into zeros: a sum would turn -0.0 into 0.0.
        """
        group, rank = chunk.torch_pg, chunk.pg_rank
        writer = dist.get_global_rank(group, 0)
        if chunk.keep_gathered and rank > 0:
            return None
        own = {name: parts_of(name) for name in tensors}
        whole = {
            name: {key: torch.empty(tensors[name].numel(), dtype=torch.float32) for key in parts}
            for name, parts in (own.items() if rank == 0 else ())
        }
        for owner in range(1 if chunk.keep_gathered else chunk.pg_size):
            spans = {name: part_on_rank(chunk, tensor, owner) for name, tensor in tensors.items()}
            places = [
                (name, key, slice(begin, end))
                for name, (begin, end) in spans.items()
                if begin < end
                for key in own[name]
            ]
            if owner == 0 == rank:
                for name, key, span in places:
                    whole[name][key][span].copy_(own[name][key])
            elif rank == owner and places:
                message = torch.cat([own[name][key].to(self._device, torch.float32) for name, key, _ in places])
                dist.send(message, dst=writer, group=group)
            elif rank == 0 and places:
                sizes = [span.stop - span.start for _, _, span in places]
                message = torch.empty(sum(sizes), dtype=torch.float32, device=self._device)
                dist.recv(message, src=dist.get_global_rank(group, owner), group=group)
                for (name, key, span), part in zip(places, message.split(sizes), strict=True):
                    whole[name][key][span].copy_(part)
        return whole if rank == 0 else None

    def _join_tensor_parallel(
        self, flat: dict[str, dict[str, torch.Tensor]]
    ) -> dict[str, dict[str, torch.Tensor] | None]:
        """What tensor parallelism left of some tensors → the whole of them on the writer, None elsewhere; one message a
        key and rank."""
        is_cut = [name for name in flat if self._parts[name].dimension is not None]
        for key in list(flat[is_cut[0]]) if is_cut else ():
            message = torch.cat([flat[name].pop(key) for name in is_cut]).to(self._device)
            gathered = gather_to_first(message, self._grid.tp_group)
            if gathered is None:
                continue
            sizes = [self._parts[name].shape.numel() for name in is_cut]
            for name, parts in zip(is_cut, gathered.cpu().split(sizes, dim=1), strict=True):
                cut = self._parts[name]
                flat[name][key] = cut.assemble(parts.reshape(len(parts), *cut.shape))
        if not self._grid.is_writer:
            return dict.fromkeys(flat)
        return {
            name: {key: tensor.view(self._parts[name].whole) for key, tensor in own.items()}
            for name, own in flat.items()
        }

    def own_parts(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        for name, master in self._masters.items():
            yield name, "param", part_of_payload(self._manager.get_chunk(master), master)
            yield from moments_of(name, self._optimizer.optim.state.get(self._stand_in(name), {}))

    def copies(self) -> Iterator[tuple[Hashable, str, torch.Tensor]]:
        # Working weights are left out: of a chunk that is not on the device they are made anew as it is brought there.
        for name, key, own in self.own_parts():
            chunk = self._manager.get_chunk(self._masters[name])
            whose = (self._parts[name].whose, None if chunk.keep_gathered else f"shard {chunk.pg_rank}")
            yield whose, name if key == "param" else f"{key} of {name}", own

    @torch.no_grad()
    def take_own_parts(self, parts: OwnParts) -> None:
        for name, master in self._masters.items():
            chunk = self._manager.get_chunk(master)
            for key, part in parts(name).items():
                if key == "param":
                    part_of_payload(chunk, master).copy_(part)
                else:
                    state = self._optimizer.optim.state[self._stand_in(name)]
                    state[key] = part.to(chunk.payload.device, torch.float32, copy=True)
        for chunk in self._manager.get_chunks(self._model.fp16_params):
            self._round_masters_into(chunk)

    def gather(self, names: list[str], lend: bool = False) -> Iterator[tuple[str, dict[str, torch.Tensor] | None]]:
        return self._gather({name: self._masters[name] for name in names}, self._state_parts)

    def _state_parts(self, name: str) -> dict[str, torch.Tensor]:
        master = self._masters[name]
        parts = {"param": part_of_payload(self._manager.get_chunk(master), master)}
        state = self._optimizer.optim.state.get(self._stand_in(name), {})
        for moment in MOMENTS:
            parts[moment] = state[moment] if moment in state else torch.zeros_like(parts["param"])
        return parts

    @torch.no_grad()
    def scatter(self, read: Read) -> None:
        for name, master in self._masters.items():
            stand_in = self._stand_in(name)
            if stand_in is None:
                continue
            chunk = self._manager.get_chunk(master)
            begin, end = part_on_rank(chunk, master, chunk.pg_rank)
            for key, whole in read(name).items():
                part = self._parts[name].read(whole, begin, end)
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
        for name, whole in self._gather(self._working, self._gradient_part):
            yield name, None if whole is None else whole["gradient"]

    def _gradient_part(self, name: str) -> dict[str, torch.Tensor]:
        parameter = self._working[name]
        chunk = self._manager.get_chunk(parameter)
        # Without accumulation the reduced gradients take the place of the weights they belong to.
        holder = chunk if self._manager.reuse_fp16_chunk else chunk.grad_chunk
        return {"gradient": part_of_payload(chunk, parameter, payload_of=holder).float() / self._scaler.scale}

    def optimizer_steps(self) -> int:
        return adam_steps(self._optimizer.optim)

    def set_optimizer_steps(self, steps: int) -> None:
        set_adam_steps(self._optimizer.optim, steps)
