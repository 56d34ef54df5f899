"""The entries of `gemini`, which keeps fixed shares of the model on the host, and `gemini_auto`, which plans them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llama_dyt.boosters.capability import Capability
from llama_dyt.boosters.strategy import MASTER_BYTES, MOMENT_BYTES, WORKING_BYTES, StateBytes, Strategy, share
from llama_dyt.config.run import RunConfig
from llama_dyt.core.problem import Problem

if TYPE_CHECKING:
    from llama_dyt.boosters.runtime import Runtime


class Gemini(Strategy):
    """Parameters lie in chunks, which are cut over the ranks and gathered while they are used."""

    @property
    def plans(self) -> bool:
        """Whether the engine plans what leaves the device, from the memory there is."""
        return self.capability.memory_plan

    def problems(self, run: RunConfig) -> Iterator[Problem]:
        # StaticPlacementPolicy sets the fraction to 0 with no more than a warning.
        booster = run.booster
        if self.plans or not booster.offload_param_frac:
            return
        shard = 1.0 if booster.shard_param_frac is None else booster.shard_param_frac
        optim = booster.offload_optim_frac or 0.0
        if shard != 1.0 or optim != 1.0:
            yield Problem(
                "offload_param_frac",
                booster.offload_param_frac,
                f"needs --shard_param_frac 1 (it is {shard:g}) and --offload_optim_frac 1 (it is {optim:g})",
                "give those, or leave it out",
                also=("shard_param_frac", "offload_optim_frac", "plugin"),
                clause=True,
            )

    def state_bytes(self, run: RunConfig, config: Any, part: Any, ranks: int) -> StateBytes:
        booster, working = run.booster, WORKING_BYTES[run.booster.mixed_precision]
        cut = share(part, ranks)
        sharded = 1.0 if booster.shard_param_frac is None else booster.shard_param_frac
        weights = working * (cut * sharded + part.num_parameters * (1.0 - sharded))
        states = (MASTER_BYTES + MOMENT_BYTES) * cut
        offload_optim, offload_param = booster.offload_optim_frac or 0.0, booster.offload_param_frac or 0.0
        return StateBytes(
            parameters=weights * (1 - offload_param),
            # Gradients take the place of the parameters in their chunks, but where several micro batches are added up.
            gradients=working * cut if run.optimizer.gradient_accumulation_steps > 1 else 0.0,
            optimizer=states * (1 - offload_optim),
            host=states * offload_optim + weights * offload_param,
        )

    def held_states(self, run: RunConfig, part: Any, ranks: int) -> int:
        return share(part, ranks)

    def boost(self, run: RunConfig, model: Any, optimizer: Any, family: Any) -> Runtime:
        from llama_dyt.boosters.strategies.gemini.runtime import GeminiRuntime

        return GeminiRuntime(run, model, optimizer, family, automatic=self.plans)


# gemini_plugin.SUPPORTED_PRECISION; GeminiDDP asserts the same two.
_FIXED = Capability(
    precisions=("fp16", "bf16"),
    compile=False,  # tensor hooks cannot be traced
    float8=False,  # ColoParameter's hooks see no autograd function of ours
    offload="fractions",
    shard_fraction=True,
    tensor_parallel=True,
    extra_data_parallel=True,
    adapters=False,  # a chunk has gradients in its parameters' place, so it cannot hold frozen ones beside others
    distillation=False,
)
# placement_policy="auto" ignores the fractions of StaticPlacementPolicy and plans from the memory it sees.
_PLANNED = replace(_FIXED, offload="automatic", shard_fraction=False, memory_plan=True)
STRATEGY = (Gemini("gemini", _FIXED, order=1), Gemini("gemini_auto", _PLANNED, order=2))
