"""The entries of `hybrid_parallel` and `hybrid_parallel_cpu`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llama_dyt.boosters.capability import Capability
from llama_dyt.boosters.strategies.zero.memory import zero_state_bytes
from llama_dyt.boosters.strategy import StateBytes, Strategy, share
from llama_dyt.config.run import RunConfig

if TYPE_CHECKING:
    from llama_dyt.boosters.runtime import Runtime


class Hybrid(Strategy):
    """Layers are cut by tensor, pipeline and sequence parallelism, and what is left by ZeRO where it is asked for."""

    def state_bytes(self, run: RunConfig, config: Any, part: Any, ranks: int) -> StateBytes:
        return zero_state_bytes(run, part, ranks, self.stage_of(run, ranks), self.offloads)

    def held_states(self, run: RunConfig, part: Any, ranks: int) -> int:
        return share(part, ranks) if self.stage_of(run, ranks) else part.num_trained

    def boost(self, run: RunConfig, model: Any, optimizer: Any, family: Any) -> Runtime:
        import torch.distributed as dist

        from llama_dyt.boosters.strategies.hybrid.runtime import boost

        stage = self.stage_of(run, self.shard_ranks(run, dist.get_world_size()))
        return boost(run, model, optimizer, family, stage, self.offloads)


# HybridParallelPlugin.__init__: "zero stage must be 0 or 1 when using pipeline parallelism";
# HybridParallelPlugin.configure: "set precision to 'fp16' or 'bf16' when using ZeRO".
_ON_DEVICE = Capability(
    float8=False,  # tensor parallelism replaces the linear layers, zbv takes their backward apart
    tensor_parallel=True,
    pipeline_parallel=True,
    expert_parallel=True,
    sequence_parallel=("all_to_all", "split_gather"),
    zero_stages=(0, 1, 2),
    default_zero_stage=0,
    pipeline_zero_stages=(0, 1),
    float32_zero_stages=(0,),
    fp32_gradients=True,
)
# Offloading is part of its ZeRO optimizer, so stage 0 has none.
_OFFLOADED = replace(
    _ON_DEVICE,
    precisions=("fp16", "bf16"),
    offload="always",
    zero_stages=(1, 2),
    default_zero_stage=1,
    pipeline_zero_stages=(1,),
    float32_zero_stages=(),
)
STRATEGY = (
    Hybrid("hybrid_parallel", _ON_DEVICE, aliases=("3d",), order=6),
    Hybrid("hybrid_parallel_cpu", _OFFLOADED, aliases=("3d_cpu",), order=7),
)
