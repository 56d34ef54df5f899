"""How much memory a rank will need, for `--dry_run`: model states as the strategy reckons them, and activations.

Model states follow from the shapes that a rank of each pipeline stage holds; a test compares them with what small runs
hold. Activations are an estimate of what autograd keeps, for attention that never materialises its scores.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig

from llama_dyt.boosters.strategy import STRATEGIES, WORKING_BYTES
from llama_dyt.config.run import RunConfig
from llama_dyt.models import empty_model, family_of, recomputed_layers
from llama_dyt.models.adapters import Adapter, attach
from llama_dyt.models.ops.linear_loss import rows_of_chunk
from llama_dyt.models.partition import StagePart, partition


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


def stage_parts(run: RunConfig, config: PretrainedConfig, adapter: Adapter | None = None) -> list[StagePart]:
    """What a rank of each pipeline stage of a run holds; `adapter`: what it trains in place of the weights."""
    booster = run.booster
    model = empty_model(config)
    if adapter is not None:
        attach(model, adapter)
    parameters = dict(model.named_parameters())
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    return partition(
        shapes,
        family_of(config),
        tp_size=booster.tp,
        pp_size=booster.pp,
        chunks=booster.model_chunks,
        zigzag=booster.pp_style == "zbv",
        tied=bool(config.tie_word_embeddings),
        trained=None if adapter is None else {name for name, held in parameters.items() if held.requires_grad},
        ep_size=booster.ep,
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
        parts: `stage_parts` of the run, where the caller has them, or it trains an adapter.
    """
    strategy = STRATEGIES.get(run.booster.plugin)
    ranks = strategy.shard_ranks(run, world_size, local_world_size)
    estimates = []
    for stage, part in enumerate(parts or stage_parts(run, config)):
        states = strategy.state_bytes(run, config, part, ranks)
        estimates.append(
            MemoryEstimate(
                states.parameters,
                states.gradients,
                states.optimizer,
                _activation_bytes(run, config, stage, part) + states.gathered,
                states.host,
            )
        )
    return estimates


def _activation_bytes(run: RunConfig, config: PretrainedConfig, stage: int, part: StagePart) -> float:
    """What the backward pass needs kept of one micro batch (of every one in flight, under a pipeline)."""
    booster, working = run.booster, WORKING_BYTES[run.booster.mixed_precision]
    hidden, family = config.hidden_size, family_of(config)
    layer = family.layer_activations(config)
    recomputing = set(recomputed_layers(config.num_hidden_layers, run.model.recomputed_share)) & set(part.layer_numbers)
    # A layer that recomputes keeps its input.
    kept = len(recomputing) * hidden + (len(part.layer_numbers) - len(recomputing)) * layer / booster.tp
    if recomputing:
        kept += layer / booster.tp  # the one that is being recomputed
    sequences = booster.micro_batch_size if booster.pp > 1 else run.data.batch_size
    # 1f1b: a stage begins as many micro batches as there are stages from it on before its first backward.
    in_flight = booster.pp - stage if booster.pp_style == "1f1b" else booster.pp
    tokens = sequences * run.data.max_length / booster.sequence_ranks
    # Under zbv the head makes logits for itself, and where it is more than its weight.
    more = (f"{family.head}.bias", f"{family.head}.lora_B.weight")
    whole = (booster.pp > 1 and booster.pp_style == "zbv") or any(name in part.shapes for name in more)
    loss = _loss_bytes(run, config, tokens, working, whole) if _holds_head(run, config, part) else 0.0
    return tokens * in_flight * kept * working + loss


def _holds_head(run: RunConfig, config: PretrainedConfig, part: StagePart) -> bool:
    """A tied head has no name of its own where the embedding is on its stage."""
    family, booster = family_of(config), run.booster
    tied = config.tie_word_embeddings and (booster.pp == 1 or booster.pp_style == "zbv")
    return f"{family.head if not tied else f'{family.decoder}.{family.embedding}'}.weight" in part.shapes


def _loss_bytes(run: RunConfig, config: PretrainedConfig, tokens: float, working: int, whole_logits: bool) -> float:
    """What the head and the loss of one micro batch take, see `models/ops/linear_loss.py`."""
    vocabulary = config.vocab_size / run.booster.tp
    if whole_logits:
        return tokens * vocabulary * (working + 4 + 4)  # whole logits in half precision, an fp32 copy, its gradient
    rows = rows_of_chunk(int(tokens), int(vocabulary), "cuda")
    # A chunk's logits, and in half precision their fp32 copy; then what waits for backward: both gradients.
    chunk = rows * vocabulary * (4 if working == 4 else working + 4)
    return chunk + config.hidden_size * (tokens * working + vocabulary * 4)
