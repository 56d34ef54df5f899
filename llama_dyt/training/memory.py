"""How much memory a rank will need: an estimate from the formulas of each plugin, for `--dry_run`.

Bytes are per rank of the heaviest pipeline stage. Model states follow from the parameter count; activations are an
estimate of what autograd keeps, for attention that never materialises its scores.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig

from llama_dyt.boosters.launch import read_environment
from llama_dyt.config.capabilities import capability, zero_stage
from llama_dyt.config.run import RunConfig
from llama_dyt.models import recomputed_layers

_WORKING_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes a rank, by what they hold. `host` is what an offloading plugin keeps in host memory instead."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    host: float = 0.0

    @property
    def device_total(self) -> float:
        return self.parameters + self.gradients + self.optimizer + self.activations


def estimate_memory(run: RunConfig, config: PretrainedConfig, num_parameters: int, world_size: int) -> MemoryEstimate:
    """Estimate for one rank of `run` with `num_parameters` on `world_size` processes."""
    booster = run.booster
    working = _WORKING_BYTES[booster.mixed_precision]
    dp = booster.data_parallel_size(world_size) * booster.sequence_ranks  # ZeRO shards over both
    local = num_parameters / (booster.tp * booster.pp)
    activations = _activation_bytes(run, config, working)

    if booster.plugin.startswith("gemini"):
        shard = 1.0 if booster.shard_param_frac is None else booster.shard_param_frac
        weights = working * local * (shard / dp + 1.0 - shard)
        states = 12.0 * local / dp  # fp32 masters and two moments
        offload_optim, offload_param = booster.offload_optim_frac or 0.0, booster.offload_param_frac or 0.0
        host = states * offload_optim + weights * offload_param
        # Gradients reuse the parameters' chunks.
        return MemoryEstimate(weights * (1 - offload_param), 0.0, states * (1 - offload_optim), activations, host=host)
    if capability(booster.plugin, "cpu").fully_sharded:
        return _fully_sharded(run, config, num_parameters, world_size, activations)
    stage = zero_stage(booster.plugin, "cpu", booster.zero) or 0
    masters = 0.0 if stage == 0 and working == 4 else 4.0 * local
    states = masters + 8.0 * local
    if stage >= 1:
        states /= dp
    gradients = working * local / (dp if stage >= 2 else 1)
    if booster.plugin == "zero2_cpu":
        return MemoryEstimate(working * local, gradients, 0.0, activations, host=states)
    return MemoryEstimate(working * local, gradients, states, activations)


def _fully_sharded(
    run: RunConfig, config: PretrainedConfig, num_parameters: int, world_size: int, activations: float
) -> MemoryEstimate:
    """fsdp, fsdp_cpu and hsdp: fp32 shards that are the masters; what computes is gathered in the working precision."""
    booster = run.booster
    shard = 4.0 * num_parameters / booster.shard_ranks(world_size, read_environment().local_world_size)
    table = config.vocab_size * config.hidden_size
    layer = (num_parameters - 2 * table) / config.num_hidden_layers
    # Embedding and head stay gathered from forward to backward; of the layers, one and the next, and their gradients.
    activations += _WORKING_BYTES[booster.mixed_precision] * (4 * table + 3 * layer)
    if booster.plugin == "fsdp_cpu":
        return MemoryEstimate(0.0, 0.0, 0.0, activations, host=4 * shard)
    # fsdp keeps whole gradients until the last micro batch, hsdp its shard of them.
    accumulates = run.optimizer.gradient_accumulation_steps > 1 and booster.plugin == "fsdp"
    return MemoryEstimate(shard, 4.0 * num_parameters if accumulates else shard, 2 * shard, activations)


def _activation_bytes(run: RunConfig, config: PretrainedConfig, working: int) -> float:
    """What the backward pass needs kept of one micro batch (of every one in flight, under a pipeline)."""
    booster = run.booster
    hidden = config.hidden_size
    head_dim = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    key_value = head_dim * config.num_key_value_heads
    # Per token and layer: inputs and outputs of two norms, q, k, v, attention's output, gate, up, their product.
    layer = 6 * hidden + 2 * key_value + 4 * config.intermediate_size
    layers = -(-config.num_hidden_layers // booster.pp)
    share = len(recomputed_layers(config.num_hidden_layers, run.model.recomputed_share)) / config.num_hidden_layers
    kept = layers * (share * hidden + (1 - share) * layer / booster.tp)  # a layer that recomputes keeps its input
    if share:
        kept += layer / booster.tp  # the one that is being recomputed
    sequences = booster.micro_batch_size if booster.pp > 1 else run.data.batch_size
    in_flight = booster.pp if booster.pp > 1 else 1
    tokens = sequences * run.data.max_length / booster.sequence_ranks
    logits = tokens * config.vocab_size / booster.tp * (working + 4 + 4)  # half precision, fp32 copy, its gradient
    return tokens * in_flight * kept * working + logits
