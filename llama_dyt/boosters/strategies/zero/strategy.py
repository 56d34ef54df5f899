"""The entries of `zero1`, `zero2` and `zero2_cpu`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llama_dyt.boosters.capability import Capability
from llama_dyt.boosters.strategies.zero.memory import zero_state_bytes
from llama_dyt.boosters.strategy import StateBytes, Strategy, share
from llama_dyt.config.run import RunConfig

if TYPE_CHECKING:
    from llama_dyt.boosters.runtime import Runtime


class Zero(Strategy):
    """Optimizer states, and gradients in stage 2, are cut over all ranks; layers stay whole."""

    def state_bytes(self, run: RunConfig, config: Any, part: Any, ranks: int) -> StateBytes:
        return zero_state_bytes(run, part, ranks, self.stage_of(run, ranks), self.offloads)

    def held_states(self, run: RunConfig, part: Any, ranks: int) -> int:
        return share(part, ranks) if self.stage_of(run, ranks) else part.num_trained

    def boost(self, run: RunConfig, model: Any, optimizer: Any, family: Any) -> Runtime:
        import torch.distributed as dist

        stage = self.stage_of(run, self.shard_ranks(run, dist.get_world_size()))
        if stage == 0:
            from llama_dyt.boosters.strategies.hybrid.runtime import boost

            return boost(run, model, optimizer, family, stage)
        from llama_dyt.boosters.strategies.zero.runtime import boost_zero

        return boost_zero(run, model, optimizer, stage, self.offloads)


_ZERO2 = Capability(
    zero_stages=(2,), default_zero_stage=2, float32_zero_stages=(2,), fp32_gradients=True, expert_parallel=True
)
STRATEGY = (
    Zero("zero1", replace(_ZERO2, zero_stages=(1,), default_zero_stage=1, float32_zero_stages=(1,)), order=3),
    Zero("zero2", _ZERO2, order=4),
    Zero("zero2_cpu", replace(_ZERO2, offload="always"), order=5),
)
