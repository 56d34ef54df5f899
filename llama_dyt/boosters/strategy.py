"""The seam of `--plugin`: a strategy spreads a model and its training over the ranks of a run.

Each of ours is a folder in `strategies/`, a user's own is a module given to `--import`. What it can do, what it holds
and what is wrong with its flags is known before torch is imported; `boost` imports the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_dyt.boosters.capability import Capability
from llama_dyt.config.run import RunConfig
from llama_dyt.core.problem import Problem
from llama_dyt.core.registry import Registry

if TYPE_CHECKING:
    from llama_dyt.boosters.runtime import Runtime

WORKING_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
"""--mixed_precision → bytes of a number that forward and backward work with."""
MASTER_BYTES = 4
MOMENT_BYTES = 8
"""Of Adam's two, for a number of the model."""


@dataclass(frozen=True)
class StateBytes:
    """Bytes of model states a rank holds.

    Attributes:
        parameters: working weights; fp32 shards where these are the masters.
        gradients: as they lie between backward and the optimizer's step.
        optimizer: fp32 masters where they are not the parameters, and Adam's two moments.
        host: what lies in host memory instead.
        gathered: what forward and backward hold besides at their peak, of weights and gradients that lie cut.
    """

    parameters: float
    gradients: float
    optimizer: float
    host: float = 0.0
    gathered: float = 0.0


@dataclass
class Strategy:
    """One value of --plugin. What is not overridden is that of plain data parallelism: every rank holds all states.

    Attributes:
        name: by which --plugin asks for it.
        capability: what it can do; messages about what it cannot follow from it.
        aliases: other names.
        settings: a dataclass of flags of its own, or None; a run has them as `run.NAME`.
        order: place in `--help` and in messages that recommend strategies; users' come last.
    """

    name: str
    capability: Capability
    aliases: tuple[str, ...] = ()
    settings: type | None = None
    order: int = 100

    @property
    def offloads(self) -> bool:
        """Whether masters and moments are in host memory, whatever the flags are."""
        return self.capability.offload == "always"

    def problems(self, run: RunConfig) -> Iterator[Problem]:
        """What is wrong with a run's flags that its capability does not tell."""
        return iter(())

    def zero_stage(self, requested: int | None, ranks: int | None = None) -> int | None:
        """The ZeRO stage a run has: as requested, else its own; None where it has no such stages.

        Args:
            ranks: how many would share the states, where that is known. One has stage 0: ZeRO would divide nothing,
                and only copy. Offloading is part of it, so where there is that the stage stays.
        """
        stage = requested if requested is not None else self.capability.default_zero_stage
        return 0 if stage and ranks == 1 and self.capability.offload == "none" else stage

    def stage_of(self, run: RunConfig, ranks: int) -> int:
        """The ZeRO stage of a run whose states `ranks` ranks share; 0 where there is none."""
        # One rank alone has nothing to reduce, and adds up in fp32 under ZeRO all the same.
        return self.zero_stage(run.booster.zero, None if run.booster.fp32_gradients else ranks) or 0

    def shard_ranks(self, run: RunConfig, world_size: int, local_world_size: int | None = None) -> int:
        """Over how many ranks model states are, or could be, cut, besides tensor and pipeline parallelism.

        Args:
            local_world_size: processes of one machine; None where the launcher does not say: then all of them.
        """
        # Sequence-parallel ranks share the states too; copies of a group that shards do not.
        return world_size // (run.booster.tp * run.booster.pp * run.booster.extra_dp)

    def state_bytes(self, run: RunConfig, config: Any, part: Any, ranks: int) -> StateBytes:
        """What a rank holds of model states.

        Args:
            config: of the model, as transformers has it.
            part: `models.partition.StagePart`, what the rank's pipeline stage has after tensor parallelism.
            ranks: `shard_ranks`.
        """
        working, count = WORKING_BYTES[run.booster.mixed_precision], part.num_trained
        # In fp32 the weights themselves are what Adam updates.
        states = MOMENT_BYTES + (MASTER_BYTES if working != MASTER_BYTES else 0)
        return StateBytes(float(working * part.num_parameters), float(working * count), float(states * count))

    def held_states(self, run: RunConfig, part: Any, ranks: int) -> int:
        """Of how many numbers of the model a rank holds fp32 master and moments; arguments as of `state_bytes`."""
        return part.num_trained

    def boost(self, run: RunConfig, model: Any, optimizer: Any, family: Any) -> Runtime:
        """Spread a model over the ranks; the process group exists.

        Args:
            model: the HuggingFace module, on the meta device: what a rank holds gets memory here
                (`materialize.materialize`), and its values afterwards, by `TrainingState.scatter`.
            optimizer: HybridAdam over the model's parameters.
            family: of the model, which says where its parts are.
        """
        raise NotImplementedError(f"{type(self).__name__}.boost")


def share(part: Any, ranks: int, frozen_too: bool = False) -> int:
    """Numbers of the largest share of a stage's trained parameters, when each is cut evenly over the ranks that have
    it: experts, where ranks share them, over fewer.

    Args:
        frozen_too: of all parameters.
    """
    shapes = part.shapes if frozen_too else part.trained_shapes
    return sum(
        -(-math.prod(shape) // (ranks // part.ep_size if name in part.spread else ranks))
        for name, shape in shapes.items()
    )


STRATEGIES: Registry[Strategy] = Registry("plugin", "llama_dyt.boosters.strategies", "STRATEGY", flag="plugin")
"""--plugin → strategy."""


def able(ability: str) -> list[str]:
    """The strategies for which the `Capability` field `ability` is true: what an error can recommend."""
    return [strategy.name for strategy in STRATEGIES if getattr(strategy.capability, ability)]
