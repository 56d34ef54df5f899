"""Gemini on a CPU, where the compute device and the memory that chunks are offloaded to are the same kind of device.

It answers one question, "is this chunk on the device or offloaded?", which Gemini asks in five places by `device.type`.
Here the compute device is written `cpu:0`, with an index, and host memory `cpu`, without one; a chunk says "cuda" for
the first, as the engine does. Sharding, offloading and eviction then run as they do on a GPU.
"""

from __future__ import annotations

from llama_dyt.boosters.engine.host import HostAccelerator
from llama_dyt.boosters.engine.upstream import replace

import torch
from colossalai.zero.gemini import placement_policy
from colossalai.zero.gemini.chunk import Chunk, ChunkManager, chunk, manager
from colossalai.zero.gemini.memory_tracer.memstats_collector import MemStatsCollector

COMPUTE_DEVICE = torch.device("cpu", 0)
HOST_MEMORY = torch.device("cpu")
_ON_DEVICE, _OFFLOADED = "cuda", "cpu"  # the two words of `Chunk.device_type`


class _IndexedHostAccelerator(HostAccelerator):
    """As Gemini's chunks see it: the compute device can be told from host memory."""

    def get_current_device(self) -> torch.device:
        return COMPUTE_DEVICE


def adapt_gemini_to_host() -> None:
    """Apply the adaptations below; called at launch, once, after `use_host_accelerator`."""
    accelerator = _IndexedHostAccelerator()
    # Only in these modules: tensors do not keep the index, so everywhere else `.to("cpu:0")` would copy for nothing.
    for module in (chunk, manager, placement_policy):
        module.get_accelerator = lambda: accelerator
    replace(Chunk, "device_type", property(_device_type))
    replace(Chunk, "close_chunk", _make_close_chunk(Chunk.close_chunk))
    replace(Chunk, "shard_move", _shard_move)
    replace(ChunkManager, "move_chunk", _make_move_chunk(ChunkManager.move_chunk))
    replace(MemStatsCollector, "sample_overall_data", _plan_for_model_data)
    replace(MemStatsCollector, "start_collection", _start_collection)


def _place(device: torch.device) -> str:
    return _ON_DEVICE if device.index is not None else _OFFLOADED


def _device_type(self: Chunk) -> str:
    """Upstream `Chunk.device_type` answers with the accelerator's name, "cpu", for a chunk on the device."""
    if self.chunk_temp is not None:
        return _OFFLOADED
    return _ON_DEVICE if self.is_gathered or self.cuda_shard is not None else _OFFLOADED


def _make_close_chunk(upstream):
    def close_chunk(self: Chunk) -> None:
        upstream(self)
        # Upstream offloads the shard when `shard_device.type == "cpu"`, which on this machine it always is.
        if not self.is_gathered and _place(self.shard_device) == _ON_DEVICE:
            self.cuda_shard, self.cpu_shard = self.cpu_shard, None

    return close_chunk


def _shard_move(self: Chunk, device: torch.device, force_copy: bool = False, non_blocking: bool = False) -> None:
    """Upstream `Chunk.shard_move` compares `device.type` with "cuda". Without pinned memory a move is a change of
    owner: both places are the same memory, so nothing is copied."""
    assert not self.is_gathered
    if not self.optim_sync_flag:
        assert _place(device) == _ON_DEVICE, "a chunk whose masters were updated must first come to the device"
        self._Chunk__paired_shard_move()
        self.optim_sync_flag = True
    elif _place(device) == _ON_DEVICE:
        if self.cuda_shard is None:
            self.cuda_shard, self.cpu_shard = self.cpu_shard, None
    elif self.cuda_shard is not None:
        self.cpu_shard, self.cuda_shard = self.cuda_shard, None
        self.cpu_vis_flag = True


def _make_move_chunk(upstream):
    """Upstream `ChunkManager.move_chunk` returns early when `chunk.device_type == device.type`; here both an offloaded
    chunk and the compute device would say "cpu"."""

    class Destination:
        """Stands in for the device in that comparison, and leads on to the real one."""

        def __init__(self, device: torch.device) -> None:
            self.type = _place(device)
            self.index = device.index

    def move_chunk(self, chunk, device, force_copy=False, async_move=False) -> None:
        upstream(self, chunk, Destination(device), force_copy, async_move)

    return move_chunk


def _plan_for_model_data(self: MemStatsCollector) -> None:
    """Upstream `MemStatsCollector.sample_overall_data` measures a GPU's peak through torch.cuda, to learn what share of
    it is not model data. Here automatic placement plans for model data alone: resident memory holds the interpreter
    and every library, and evicting a chunk to the same memory would not lower it. So the plan is the same on every
    run."""
    if self._start_flag and not self.use_outside_memstats:
        self._memstats.record_max_cuda_overall_data(self._memstats._prev_md_cuda)
        self._memstats.calc_max_cuda_non_model_data()


def _start_collection(self: MemStatsCollector) -> None:
    """Upstream also starts its monitor, which is torch.cuda's."""
    self._start_flag = True
