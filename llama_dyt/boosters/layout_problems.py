"""What keeps ranks, heads, layers, batches and sequences from being divided as asked, and what a division forbids."""

from __future__ import annotations

import math
from collections.abc import Iterator

from llama_dyt.boosters.strategy import STRATEGIES, able
from llama_dyt.config.run import RunConfig
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.problem import Problem
from llama_dyt.models.settings import divisor_below, family_fields, model_of
from llama_dyt.models.size import Size

_SIZE_FLAGS = (
    "config",
    "model_path",
    "hidden_width",
    "num_layers",
    "num_heads",
    "num_key_value_heads",
    "intermediate_size",
)
"""What the numbers of a model's shape follow from."""
_LEFT_OUT = {
    "ring": "the engine's ring (`_ring_as_gather`) keeps the wrong tensors for the backward pass, so the gradients of "
    "the split weights are wrong; take --sp_mode split_gather, which computes the same over the same ranks",
    "ring_attn": "ring attention needs the flash-attn package's kernels inside the engine's own attention, which this "
    "model does not call; take --sp_mode all_to_all, which also spreads long sequences",
}


def pipeline_problems(run: RunConfig, size: Size | None) -> Iterator[Problem]:
    """Problems of --pp_style and --n_chunks."""
    booster = run.booster
    style, chunks = f"--pp_style {booster.pp_style}", booster.n_chunks
    if booster.pp == 1:
        if booster.pp_style != "1f1b":
            reason = "has an effect only with --pp above 1"
            yield Problem(
                "pp_style", booster.pp_style, reason, "give --pp 2 or more, or leave it out", also=("pp",), clause=True
            )
        elif chunks is not None and chunks > 1:
            reason = "has an effect only with --pp above 1 and --pp_style interleaved"
            yield Problem("n_chunks", chunks, reason, "leave it out", also=("pp", "pp_style"), clause=True)
        return
    if booster.pp_style == "1f1b" and chunks is not None and chunks > 1:
        yield _wrong_chunks(
            chunks, f"with {style} a stage holds one chunk", "take --pp_style interleaved, or leave it out"
        )
    elif booster.pp_style == "interleaved" and chunks == 1:
        yield _wrong_chunks(
            chunks, f"with {style} a stage holds 2 chunks or more", "give that, or take --pp_style 1f1b"
        )
    elif booster.pp_style == "zbv" and chunks not in (None, 2):
        yield _wrong_chunks(chunks, f"with {style} a stage holds 2 chunks", "leave it out")
    if booster.pp_style == "1f1b":
        return
    # InterleavedSchedule.load_batch and ZeroBubbleVPipeScheduler.load_batch assert it.
    count = booster.micro_batches(run.data.batch_size * run.optimizer.gradient_accumulation_steps)
    if count % booster.pp and count > booster.pp and run.data.batch_size % booster.micro_batch_size == 0:
        steps = run.optimizer.gradient_accumulation_steps
        yield Problem(
            "batch_size",
            run.data.batch_size,
            f"times --gradient_accumulation_steps {steps} in micro batches of {booster.micro_batch_size} makes {count}",
            f"{style} needs a multiple of the --pp {booster.pp} stages",
            also=("gradient_accumulation_steps", "mbs", "pp_style", "pp"),
            clause=True,
        )
    parts = booster.pp * booster.model_chunks
    if size is not None and booster.pp <= size.num_layers < parts:
        yield Problem(
            "pp_style",
            booster.pp_style,
            f"cuts the model's {size.num_layers} layers into --pp {booster.pp} times {booster.model_chunks} chunks",
            f"make them {size.num_layers} or fewer, or take --pp_style 1f1b",
            also=("pp", "n_chunks", *_SIZE_FLAGS),
            clause=True,
        )


def _wrong_chunks(chunks: int | None, reason: str, remedy: str) -> Problem:
    return Problem("n_chunks", chunks, reason, remedy, also=("pp_style", "pp"))


def sequence_problems(run: RunConfig, size: Size | None) -> Iterator[Problem]:
    """Problems of --sp and --sp_mode."""
    booster = run.booster
    mode = booster.sequence_parallelism
    if mode is None:
        return
    flag = f"--sp_mode {mode}"
    if mode in _LEFT_OUT:
        reason, _, remedy = _LEFT_OUT[mode].partition("; ")
        yield Problem("sp_mode", mode, f"is left out: {reason}", remedy, clause=True)
        return
    if mode not in STRATEGIES.get(booster.plugin).capability.sequence_parallel:
        others = " or ".join(f"--plugin {name}" for name in able("sequence_parallel"))
        given = ("sp_mode", mode) if booster.sp_mode is not None else ("sp", booster.sp)
        reason = f"--plugin {booster.plugin} has no sequence parallelism"
        yield Problem(*given, reason, f"take {others}, or leave the flag out", also=("plugin",))
        return
    if mode == "split_gather":
        if booster.tp == 1:
            reason = "cuts sequences over the tensor-parallel ranks"
            yield Problem(
                "sp_mode", mode, reason, "give --tp 2 or more, or --sp_mode all_to_all", also=("tp",), clause=True
            )
            return
        if booster.sp not in (1, booster.tp):
            reason = f"with {flag}: its size is that of --tp, {booster.tp}"
            yield Problem("sp", booster.sp, reason, "leave --sp out", also=("sp_mode", "tp"), clause=True)
    elif booster.sp == 1:
        remedy = "give --sp 2 or more, or leave --sp_mode out"
        yield Problem("sp_mode", mode, "with --sp 1 spreads nothing", remedy, also=("sp",), clause=True)
        return
    ranks = booster.tp if mode == "split_gather" else booster.sp
    if run.data.max_length % ranks:
        yield Problem(
            "max_length",
            run.data.max_length,
            f"cannot be cut for {ranks} ranks ({flag})",
            f"give a multiple, such as {-(-run.data.max_length // ranks) * ranks}",
            also=("sp_mode", "sp", "tp"),
            clause=True,
        )
    if mode == "all_to_all" and size is not None and size.num_heads % (booster.tp * booster.sp):
        times = f"times --tp {booster.tp} " if booster.tp > 1 else ""
        yield Problem(
            "sp",
            booster.sp,
            f"{times}does not divide the model's {size.num_heads} attention heads, which all_to_all spreads over these "
            "ranks",
            "give a number that does",
            also=("tp", "sp_mode", *_SIZE_FLAGS),
            clause=True,
        )


def layout_problems(run: RunConfig, size: Size | None, world_size: int | None) -> Iterator[Problem]:
    """Whether ranks, heads, layers and batches can be divided as asked."""
    booster, batch_size = run.booster, run.data.batch_size
    ranks = booster.ranks_a_replica
    if world_size is not None and world_size % ranks:
        third = f" times --sp {booster.sp}" if booster.sequence_ranks > 1 else ""
        smaller = "--tp, --pp or --sp" if third else "--tp or --pp"
        yield Problem(
            "tp",
            booster.tp,
            f"times --pp {booster.pp}{third} is {ranks}, which does not divide the {world_size} "
            f"process{'es' if world_size > 1 else ''}",
            f"launch a multiple of {ranks}, or make {smaller} smaller",
            also=("pp", "sp"),
            clause=True,
        )
    elif world_size is not None and booster.data_parallel_size(world_size) % booster.extra_dp:
        replicas = booster.data_parallel_size(world_size)
        yield Problem(
            "extra_dp",
            booster.extra_dp,
            f"does not divide the {replicas} data-parallel ranks",
            f"give a number that does, such as {divisor_below(replicas, booster.extra_dp)}",
            also=("tp", "pp", "sp"),
            clause=True,
        )
    if world_size is not None and booster.shard_size is not None and world_size % booster.shard_size:
        yield Problem(
            "shard_size",
            booster.shard_size,
            f"does not divide the {world_size} process{'es' if world_size > 1 else ''}",
            f"give a number that does, such as {divisor_below(world_size, booster.shard_size)}",
            clause=True,
        )
    if booster.ep > 1:
        yield from _expert_problems(run, world_size, size)
    if booster.pp > 1:
        micro, steps = booster.micro_batch_size, run.optimizer.gradient_accumulation_steps
        # All batches of an optimizer step go through the pipeline as one schedule.
        count = booster.micro_batches(batch_size * steps)
        if batch_size % micro:
            reason = f"is not divisible by --mbs {micro}"
            yield Problem(
                "batch_size", batch_size, reason, f"give a multiple of {micro}", also=("mbs", "pp"), clause=True
            )
        elif count < booster.pp:
            # OneForwardOneBackwardSchedule.load_batch asserts it: fewer would leave stages without work.
            yield Problem(
                "batch_size",
                batch_size,
                f"times --gradient_accumulation_steps {steps} in micro batches of {micro} makes {count}, fewer than "
                f"the --pp {booster.pp} stages",
                f"make it {booster.pp} or more",
                also=("gradient_accumulation_steps", "mbs", "pp"),
                clause=True,
            )
    if size is None:
        return
    if booster.tp > 1:
        counts = model_of(run).family.tensor_parallel_counts(size)
        undivided = [f"{count} {what}" for what, count in counts.items() if count % booster.tp]
        if undivided:
            divisor = divisor_below(math.gcd(*counts.values()), booster.tp)
            yield Problem(
                "tp",
                booster.tp,
                f"does not divide the model's {', '.join(undivided)}",
                f"give a number that does, such as {divisor}",
                also=_SIZE_FLAGS,
                clause=True,
            )
    if booster.pp > size.num_layers:
        reason, remedy = f"is more than the model's {size.num_layers} layers", f"give at most {size.num_layers}"
        yield Problem("pp", booster.pp, reason, remedy, also=_SIZE_FLAGS, clause=True)


def _expert_problems(run: RunConfig, world_size: int | None, size: Size | None) -> Iterator[Problem]:
    """Whether experts can be shared as --ep asks."""
    booster = run.booster

    def problem(reason: str, remedy: str, *also: str) -> Problem:
        return Problem("ep", booster.ep, reason, remedy, also=also, clause=True)

    if booster.sequence_ranks > 1:
        reason = f"and --sp {booster.sp} would each spread the tokens of data-parallel ranks"
        yield problem(reason, "leave one out", "sp", "sp_mode")
    if world_size is not None and world_size % booster.ranks_a_replica == 0:
        ranks = booster.data_parallel_size(world_size)
        if ranks % booster.ep:
            remedy = f"give a number that does, such as {divisor_below(ranks, booster.ep)}"
            yield problem(f"does not divide the {ranks} data-parallel ranks", remedy, "tp", "pp")
    if size is None:
        return
    if not has_experts(run):
        remedy = "leave it out, or take a model that has some, such as --config mixtral_8x7b"
        yield problem("shares experts, and the model has none", remedy, *_SIZE_FLAGS)
        return
    family = model_of(run).family
    experts = family.num_experts(size, family_fields(run, family))
    if experts % booster.ep:
        remedy = f"give a number that does, such as {divisor_below(experts, booster.ep)}"
        yield problem(f"does not divide the {experts} experts of a layer", remedy, *_SIZE_FLAGS)


def untraceable_layout(run: RunConfig) -> Problem | None:
    """What of how layers are cut keeps them from being compiled; None: nothing."""
    booster = run.booster
    if booster.tp > 1:
        reason = f"the linear layers of --tp {booster.tp} start collectives that cannot be traced"
        return Problem("compile", True, reason, "leave the flag out, or give --tp 1", also=("tp",))
    if booster.pp_style == "zbv":
        reason = "the linear layers of --pp_style zbv put off their weights' gradients, which cannot be traced"
        return Problem("compile", True, reason, "leave the flag out, or take another style", also=("pp_style",))
    if has_experts(run):
        reason = "layers with experts send tokens by what they are, which cannot be traced"
        return Problem("compile", True, reason, "leave the flag out", also=_SIZE_FLAGS)
    return None


def has_experts(run: RunConfig) -> bool:
    """Whether the run's model has experts; no where that is not known, which its own checks tell."""
    try:
        model = model_of(run)
    except ConfigurationError:
        return False
    return model is not None and model.family.experts is not None
