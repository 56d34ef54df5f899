"""What the workers run: each function here is one case, called on every rank of a pool.

Its own file because workers import it, and it imports the engine, which the tests themselves need not.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from llama_dyt.boosters.boosted import Boosted, sum_over_ranks
from llama_dyt.boosters.strategies.gemini.plugin import ChunkedModel
from llama_dyt.config.run import RunConfig
from llama_dyt.data.loaders.step import Step
from llama_dyt.models import count_parameters, empty_model, recompute_activations
from llama_dyt.models.llama.modeling_llama_dyt import LlamaDytDecoderLayer
from llama_dyt.training.optimizer import parameter_groups
from tests.distributed import small_run
from tests.distributed.small_run import Layout

FAULTS = {
    "halve all": lambda name, gradient: gradient / 2,
    "halve alpha": lambda name, gradient: gradient / 2 if name.endswith("alpha") else gradient,
    "zero alpha": lambda name, gradient: gradient * 0 if name.endswith("alpha") else gradient,
    "negate alpha": lambda name, gradient: -gradient if name.endswith("alpha") else gradient,
}
"""Ways to spoil a gradient, to see that the parity test would notice."""
UNSUMMED = "leave gradients of slices unsummed"
"""The fault of split_gather: no sum over the ranks for what they computed on slices of the sequences."""
WRONG_WORLD_SIZE = "scale the loss by the wrong world size"
OTHER_SEEDS = "a seed of its own on every rank"


@dataclass(frozen=True)
class RankResult:
    """What one rank has to show of a run. Tensors are whole, and here only on the rank that would write them.

    Attributes:
        dp_rank: which rows this rank read.
        first_rows: token ids of its first micro batch.
        start: fp32 weights before the first step.
        gradients: of the first step, before clipping.
        losses: of the global batch, every step.
        grad_norms: every step's.
        weights: fp32, after the last step.
        held_share: how much of all Adam moments this rank holds.
        gathered_chunks: Gemini's chunks that are whole on every rank.
        layer_runs: how often each of its decoder layers, by number, ran in the first step, recomputation included.
    """

    dp_rank: int
    first_rows: list[list[int]]
    start: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor]
    losses: list[float]
    grad_norms: list[float | None]
    weights: dict[str, torch.Tensor]
    held_share: float
    gathered_chunks: int
    layer_runs: dict[int, int]


def boost(
    run: RunConfig,
    norm: str = "dyt",
    num_layers: int = 4,
    fault: str | None = None,
    tied: bool = False,
    family: str = "15m",
) -> Boosted:
    """The small model under the run's plugin; `fault` spoils its gradients before anything reads them."""
    # Gemini's hooks take the gradient away, so ours must be there first; the others give parameters memory and cut
    # them, so there they must come after.
    before = run.booster.plugin.startswith("gemini")
    if fault in FAULTS and before:
        model = small_run.small_model(norm, num_layers, tied=tied, family=family)
        _spoil_gradients(model, fault)
    else:
        model = empty_model(small_run.model_config(norm, num_layers, tied, family))
    recompute_activations(model, run.model.recomputed_share)
    groups = parameter_groups(model, run.optimizer.weight_decay, run.optimizer.decay_all_parameters)
    seed = small_run.SEED + (dist.get_rank() if fault == OTHER_SEEDS else 0)
    boosted = Boosted(run, model, groups, small_run.weights(model, seed))
    if fault == UNSUMMED:
        for parameter in boosted.module.parameters():
            parameter.partial_derived = False
    elif fault in FAULTS and not before:
        _spoil_gradients(boosted.module, fault)
    return boosted


def _spoil_gradients(module: torch.nn.Module, fault: str) -> None:
    for name, parameter in module.named_parameters():
        if isinstance(parameter, DTensor):  # FSDP puts the gradient there itself, past autograd's hooks

            def spoil_shard(parameter: DTensor, name: str = name) -> None:
                gradient = parameter.grad.to_local()
                gradient.copy_(FAULTS[fault](name, gradient))

            parameter.register_post_accumulate_grad_hook(spoil_shard)
        else:
            parameter.register_hook(lambda gradient, name=name: FAULTS[fault](name, gradient))


def gathered(boosted: Boosted, key: str = "param") -> dict[str, torch.Tensor]:
    """Whole fp32 masters ("param") or moments, by name, on the ranks that write them; collective."""
    names = list(boosted.state.sizes())
    return {name: tensors[key] for name, tensors in boosted.state.gather(names) if tensors is not None}


def train(
    layout: Layout,
    precision: str,
    accumulation: int = 1,
    norm: str = "dyt",
    num_steps: int = small_run.NUM_STEPS,
    fault: str | None = None,
    tied: bool = False,
    family: str = "15m",
    loss_scale: float | None = None,
    **flags: Any,
) -> RankResult:
    """Train the small run boosted; `loss_scale`: fp16's first one, None for the usual."""
    run = small_run.run_config(layout, precision, accumulation, **flags)
    boosted = boost(run, norm, fault=fault, tied=tied, family=family)
    if loss_scale is not None:
        boosted.scaler.load_state_dict({"scale": loss_scale, "growth_step": 0, "hysteresis_step": 0})
    start = gathered(boosted)
    gradients: dict[str, torch.Tensor] = {}
    losses, grad_norms = [], []
    batches = small_run.batches(run, boosted.grid.dp_rank, boosted.grid.dp_size)
    first_rows: list[list[int]] = []
    runs, layer_runs = _count_layer_runs(boosted), {}
    if fault == WRONG_WORLD_SIZE:
        boosted.grid = replace(boosted.grid, dp_size=dist.get_world_size() * boosted.grid.dp_size)
    for step in islice(batches, num_steps):
        boosted.set_learning_rate(run.optimizer.lr)
        share = boosted.forward_backward(step)
        losses += sum_over_ranks([share], boosted.device)
        if not first_rows:
            layer_runs = dict(runs)
            first_rows = step.micro_batches[0]["input_ids"].tolist()
            gradients = {name: gradient for name, gradient in boosted.state.gradients() if gradient is not None}
        grad_norms.append(boosted.optimizer_step().grad_norm)
    return RankResult(
        dp_rank=boosted.grid.dp_rank,
        first_rows=first_rows,
        start=start,
        gradients=gradients,
        losses=losses,
        grad_norms=grad_norms,
        weights=gathered(boosted),
        held_share=_held_share(boosted),
        gathered_chunks=_gathered_chunks(boosted),
        layer_runs=layer_runs,
    )


def go_on_from_own_state(layout: Layout, precision: str, tied: bool) -> list[list[float]]:
    """Losses of two steps after two others: of the run itself, and of one made anew from what it gathered."""
    run = small_run.run_config(layout, precision)
    first = boost(run, tied=tied)
    batches = list(islice(small_run.batches(run, first.grid.dp_rank, first.grid.dp_size), 4))
    _losses(first, batches[:2])
    stages: list[Any] = [None] * layout.world_size
    mine = {name: tensors for name, tensors in first.state.gather(list(first.state.sizes())) if tensors is not None}
    dist.all_gather_object(stages, mine)
    whole = {name: tensors for stage in stages for name, tensors in stage.items()}

    model = empty_model(small_run.model_config(tied=tied))
    groups = parameter_groups(model, run.optimizer.weight_decay, run.optimizer.decay_all_parameters)
    second = Boosted(run, model, groups, lambda name: whole[name])
    second.state.set_optimizer_steps(first.state.optimizer_steps())
    return [_losses(boosted, batches[2:]) for boosted in (first, second)]


def _losses(boosted: Boosted, batches: list[Step]) -> list[float]:
    losses = []
    for step in batches:
        losses += sum_over_ranks([boosted.forward_backward(step)], boosted.device)
        boosted.optimizer_step()
    return losses


def _own_layers(boosted: Boosted) -> list[LlamaDytDecoderLayer]:
    """Decoder layers, without what a pipeline leaves of those of other stages."""
    return [layer for layer in boosted.module.model.layers if isinstance(layer, LlamaDytDecoderLayer)]


def _count_layer_runs(boosted: Boosted) -> Counter[int]:
    runs: Counter[int] = Counter()
    for layer in [] if boosted.run.speed.compile else _own_layers(boosted):  # a graph has no place for what hooks do
        layer.self_attn.register_forward_pre_hook(lambda attention, _: runs.update([attention.layer_idx]))
    return runs


def _held_share(boosted: Boosted) -> float:
    inner = boosted.optimizer.optim
    held = sum(state["exp_avg"].numel() for state in inner.state.values())
    return held / count_parameters(boosted.module.config)


def _gathered_chunks(boosted: Boosted) -> int:
    if not isinstance(boosted.model, ChunkedModel):
        return 0
    manager = boosted.model.chunk_manager
    return sum(chunk.keep_gathered for chunk in manager.get_chunks(boosted.model.fp16_params))


def rope_at(layout: Layout, position: int) -> list[dict[str, torch.Tensor]]:
    """cos and sin of a position as every attention layer of this rank got them, in a bf16 step that reaches it; nothing
    from ranks whose slice of the sequences it is not in."""
    rows = layout.pp  # the engine wants a micro batch for every stage
    run = small_run.run_config(layout, "bf16", max_length=position + 1, batch_size=rows, mbs=1)
    boosted = boost(run, num_layers=2)
    arrived: list[dict[str, torch.Tensor]] = []

    def look(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        cos, sin = kwargs["position_embeddings"]
        place = position - boosted.grid.sp_rank * cos.shape[1]
        if 0 <= place < cos.shape[1]:
            arrived.append({"cos": cos[0, place].clone(), "sin": sin[0, place].clone()})

    for layer in _own_layers(boosted):
        layer.self_attn.register_forward_pre_hook(look, with_kwargs=True)
    ids = torch.arange(position + 1).remainder(small_run.VOCAB_SIZE).expand(rows, -1).contiguous()
    step = Step([{"input_ids": ids, "labels": ids}], position * rows * layout.dp, ids.numel() * layout.dp, {})
    boosted.forward_backward(step)
    return arrived
