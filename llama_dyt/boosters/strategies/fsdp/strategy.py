"""The entries of `fsdp`, `fsdp_cpu` and `hsdp`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llama_dyt.boosters.capability import Capability
from llama_dyt.boosters.strategy import MASTER_BYTES, MOMENT_BYTES, WORKING_BYTES, StateBytes, Strategy, share
from llama_dyt.config.run import RunConfig
from llama_dyt.core.errors import ConfigurationError

if TYPE_CHECKING:
    from llama_dyt.boosters.runtime import Runtime


class FullyShardedDataParallel(Strategy):
    """fp32 shards of parameters, gradients and optimizer states; layers are gathered while they compute."""

    def shard_ranks(self, run: RunConfig, world_size: int, local_world_size: int | None = None) -> int:
        """How many ranks share one copy of the model."""
        if not self.capability.shard_size:
            return world_size
        return run.booster.shard_size or local_world_size or world_size

    def state_bytes(self, run: RunConfig, config: Any, part: Any, ranks: int) -> StateBytes:
        held = float(share(part, ranks, frozen_too=True))
        cut = float(share(part, ranks))
        frozen = WORKING_BYTES[run.booster.mixed_precision] * (held - cut)
        states = (MASTER_BYTES * cut + frozen, MASTER_BYTES * cut, MOMENT_BYTES * cut)
        # At the peak embedding and head, from forward to backward; of the layers one, the next, and one's gradients.
        table = config.vocab_size * config.hidden_size
        layer = (part.num_parameters - 2 * table) / config.num_hidden_layers
        trained = part.num_trained / part.num_parameters  # what else has no gradients to gather
        gathered = WORKING_BYTES[run.booster.mixed_precision] * ((2 + 2 * trained) * table + (2 + trained) * layer)
        if self.offloads:
            return StateBytes(0.0, 0.0, 0.0, host=sum(states), gathered=gathered)
        return StateBytes(*states, gathered=gathered)

    def held_states(self, run: RunConfig, part: Any, ranks: int) -> int:
        return share(part, ranks)

    def boost(self, run: RunConfig, model: Any, optimizer: Any, family: Any) -> Runtime:
        import torch.distributed as dist

        from llama_dyt.boosters.strategies.fsdp.runtime import FsdpRuntime
        from llama_dyt.core.environment import read_environment

        world_size = dist.get_world_size()
        shard_size = self.shard_ranks(run, world_size, read_environment().local_world_size)
        if world_size % shard_size:  # only of machines with unlike numbers of processes; --shard_size was checked
            raise ConfigurationError(
                f"--plugin {self.name}: the {shard_size} processes of this machine do not divide the {world_size} of "
                "the run; give --shard_size"
            )
        return FsdpRuntime(run, model, optimizer, family, shard_size, self.offloads)


_FSDP = Capability(fp32_gradients=True, expert_parallel=True)
STRATEGY = (
    FullyShardedDataParallel("fsdp", _FSDP, order=9),
    FullyShardedDataParallel("fsdp_cpu", replace(_FSDP, offload="always"), order=10),
    FullyShardedDataParallel("hsdp", replace(_FSDP, shard_size=True, expert_parallel=False), order=11),
)
