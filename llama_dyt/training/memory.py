"""How much memory a rank will need: an estimate from the formulas of each plugin, for `--dry_run`.

Model states follow from the shapes that a rank of each pipeline stage holds; a test compares them with what small runs
hold. Activations are an estimate of what autograd keeps, for attention that never materialises its scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from transformers import PretrainedConfig

from llama_dyt.config.capabilities import capability, zero_stage
from llama_dyt.config.run import RunConfig
from llama_dyt.models import FAMILIES, empty_model, recomputed_layers
from llama_dyt.models.linear_loss import rows_of_chunk
from llama_dyt.models.partition import StagePart, partition

_WORKING_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
_MASTER_BYTES = 4
_MOMENT_BYTES = 8


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes a rank, by what they hold. `host` is what an offloading plugin keeps in host memory instead.

    Attributes:
        parameters: working weights; under fsdp the fp32 shards.
        gradients: as they lie between backward and the optimizer's step.
        optimizer: fp32 masters where they are not the parameters, and Adam's two moments.
    """

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    host: float = 0.0

    @property
    def device_total(self) -> float:
        return self.parameters + self.gradients + self.optimizer + self.activations


def stage_parts(run: RunConfig, config: PretrainedConfig) -> list[StagePart]:
    """What a rank of each pipeline stage of a run holds."""
    booster = run.booster
    shapes = {name: parameter.shape for name, parameter in empty_model(config).named_parameters()}
    return partition(
        shapes,
        FAMILIES[config.model_type],
        tp_size=booster.tp,
        pp_size=booster.pp,
        chunks=booster.model_chunks,
        zigzag=booster.pp_style == "zbv",
        tied=bool(config.tie_word_embeddings),
    )


def estimate_memory(
    run: RunConfig,
    config: PretrainedConfig,
    world_size: int,
    local_world_size: int | None = None,
    parts: list[StagePart] | None = None,
) -> list[MemoryEstimate]:
    """Estimates for one rank of each pipeline stage of `run` on `world_size` processes.

    Args:
        local_world_size: processes of one machine; None: all.
        parts: `stage_parts(run, config)`, where the caller has them.
    """
    ranks = _sharding_ranks(run, world_size, local_world_size)
    parts = parts or stage_parts(run, config)
    return [_of_stage(run, config, stage, part, ranks) for stage, part in enumerate(parts)]


def _of_stage(run: RunConfig, config: PretrainedConfig, stage: int, part: StagePart, ranks: int) -> MemoryEstimate:
    booster = run.booster
    can = capability(booster.plugin, "cpu")
    working = _WORKING_BYTES[booster.mixed_precision]
    held = part.num_parameters
    share = _share(part, ranks)
    activations = _activation_bytes(run, config, stage, part, working)

    if can.fully_sharded:
        activations += _gathered_bytes(run, config, part)
        states = (_MASTER_BYTES * share, _MASTER_BYTES * share, _MOMENT_BYTES * share)
        if can.offload == "always":
            return MemoryEstimate(0.0, 0.0, 0.0, activations, host=float(sum(states)))
        return MemoryEstimate(*map(float, states), activations)
    if booster.plugin.startswith("gemini"):
        shard = 1.0 if booster.shard_param_frac is None else booster.shard_param_frac
        weights = working * (share * shard + held * (1.0 - shard))
        states = (_MASTER_BYTES + _MOMENT_BYTES) * share
        offload_optim, offload_param = booster.offload_optim_frac or 0.0, booster.offload_param_frac or 0.0
        host = states * offload_optim + weights * offload_param
        # Gradients take the place of the parameters in their chunks, but where several micro batches are added up.
        gradients = working * share if run.optimizer.gradient_accumulation_steps > 1 else 0.0
        return MemoryEstimate(
            weights * (1 - offload_param), gradients, states * (1 - offload_optim), activations, host=host
        )
    zero = zero_stage(booster.plugin, "cpu", booster.zero, ranks) or 0
    mine = share if zero else held
    # In fp32 and without ZeRO the weights themselves are what Adam updates.
    states = (_MOMENT_BYTES + (_MASTER_BYTES if zero or working != _MASTER_BYTES else 0)) * float(mine)
    gradients = working * float(share if zero == 2 else held)
    if can.offload == "always":
        return MemoryEstimate(working * held, gradients, 0.0, activations, host=states)
    return MemoryEstimate(working * held, gradients, states, activations)


def _sharding_ranks(run: RunConfig, world_size: int, local_world_size: int | None) -> int:
    """Over how many ranks the plugin cuts model states, besides tensor and pipeline parallelism."""
    booster = run.booster
    if capability(booster.plugin, "cpu").fully_sharded:
        return booster.shard_ranks(world_size, local_world_size)
    # Sequence-parallel ranks share the states too; copies of a group that shards do not.
    return world_size // (booster.tp * booster.pp * booster.extra_dp)


def _share(part: StagePart, ranks: int) -> int:
    """Numbers of the largest share, when every parameter is cut evenly."""
    return sum(-(-math.prod(shape) // ranks) for shape in part.shapes.values())


def _gathered_bytes(run: RunConfig, config: PretrainedConfig, part: StagePart) -> float:
    """What fsdp holds gathered at its peak: embedding and head from forward to backward; of the layers, one and the
    next, and one's gradients."""
    table = config.vocab_size * config.hidden_size
    layer = (part.num_parameters - 2 * table) / config.num_hidden_layers
    return _WORKING_BYTES[run.booster.mixed_precision] * (4 * table + 3 * layer)


def _activation_bytes(run: RunConfig, config: PretrainedConfig, stage: int, part: StagePart, working: int) -> float:
    """What the backward pass needs kept of one micro batch (of every one in flight, under a pipeline)."""
    booster = run.booster
    hidden = config.hidden_size
    head_dim = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    key_value = head_dim * config.num_key_value_heads
    # Per token and layer: inputs and outputs of two norms, q, k, v, attention's output, gate, up, their product.
    layer = 6 * hidden + 2 * key_value + 4 * config.intermediate_size
    recomputing = set(recomputed_layers(config.num_hidden_layers, run.model.recomputed_share)) & set(part.layers)
    # A layer that recomputes keeps its input.
    kept = len(recomputing) * hidden + (len(part.layers) - len(recomputing)) * layer / booster.tp
    if recomputing:
        kept += layer / booster.tp  # the one that is being recomputed
    sequences = booster.micro_batch_size if booster.pp > 1 else run.data.batch_size
    # 1f1b: a stage begins as many micro batches as there are stages from it on before its first backward.
    in_flight = booster.pp - stage if booster.pp_style == "1f1b" else booster.pp
    tokens = sequences * run.data.max_length / booster.sequence_ranks
    holds_head = any(name.startswith(FAMILIES[config.model_type].head) for name in part.shapes)
    loss = _loss_bytes(run, config, tokens, working) if holds_head else 0.0
    return tokens * in_flight * kept * working + loss


def _loss_bytes(run: RunConfig, config: PretrainedConfig, tokens: float, working: int) -> float:
    """What the head and the loss of one micro batch take, see `models/linear_loss.py`."""
    vocabulary = config.vocab_size / run.booster.tp
    if run.booster.pp > 1 and run.booster.pp_style == "zbv":
        return tokens * vocabulary * (working + 4 + 4)  # whole logits in half precision, an fp32 copy, its gradient
    rows = rows_of_chunk(int(tokens), int(vocabulary), "cuda")
    # A chunk's logits, and in half precision their fp32 copy; then what waits for backward: both gradients.
    chunk = rows * vocabulary * (4 if working == 4 else working + 4)
    return chunk + config.hidden_size * (tokens * working + vocabulary * 4)
