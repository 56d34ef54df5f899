"""What keeps a pipeline or a sequence from being cut as asked: the rules of --pp_style, --n_chunks, --sp and --sp_mode.

Its own file beside `check`, which gathers these problems with all others, because they follow from how the engine's
schedules and the attention over all-to-all are made, and from nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator

from llama_dyt.config.capabilities import capability, plugins_able
from llama_dyt.config.run import RunConfig
from llama_dyt.config.sizes import Size

_LEFT_OUT = {
    "ring": "the engine's ring (`_ring_as_gather`) keeps the wrong tensors for the backward pass, so the gradients of "
    "the split weights are wrong; take --sp_mode split_gather, which computes the same over the same ranks",
    "ring_attn": "ring attention needs the flash-attn package's kernels inside the engine's own attention, which this "
    "model does not call; take --sp_mode all_to_all, which also spreads long sequences",
}


def pipeline_problems(run: RunConfig, size: Size | None) -> Iterator[str]:
    """Problems of --pp_style and --n_chunks."""
    booster = run.booster
    style, chunks = f"--pp_style {booster.pp_style}", booster.n_chunks
    if booster.pp == 1:
        if booster.pp_style != "1f1b":
            yield f"{style} has an effect only with --pp above 1; give --pp 2 or more, or leave it out"
        elif chunks is not None and chunks > 1:
            yield f"--n_chunks {chunks} has an effect only with --pp above 1 and --pp_style interleaved; leave it out"
        return
    if booster.pp_style == "1f1b" and chunks is not None and chunks > 1:
        yield f"--n_chunks {chunks}: with {style} a stage holds one chunk; take --pp_style interleaved, or leave it out"
    elif booster.pp_style == "interleaved" and chunks == 1:
        yield f"--n_chunks 1: with {style} a stage holds 2 chunks or more; give that, or take --pp_style 1f1b"
    elif booster.pp_style == "zbv" and chunks not in (None, 2):
        yield f"--n_chunks {chunks}: with {style} a stage holds 2 chunks; leave it out"
    if booster.pp_style == "1f1b":
        return
    # InterleavedSchedule.load_batch and ZeroBubbleVPipeScheduler.load_batch assert it.
    count = run.micro_batches_a_step
    if count % booster.pp and count > booster.pp and run.data.batch_size % booster.micro_batch_size == 0:
        steps = run.optimizer.gradient_accumulation_steps
        yield (
            f"--batch_size {run.data.batch_size} times --gradient_accumulation_steps {steps} in micro batches of "
            f"{booster.micro_batch_size} makes {count}; {style} needs a multiple of the --pp {booster.pp} stages"
        )
    parts = booster.pp * booster.model_chunks
    if size is not None and booster.pp <= size.num_layers < parts:
        yield (
            f"{style} cuts the model's {size.num_layers} layers into --pp {booster.pp} times {booster.model_chunks} "
            f"chunks; make them {size.num_layers} or fewer, or take --pp_style 1f1b"
        )


def sequence_problems(run: RunConfig, size: Size | None) -> Iterator[str]:
    """Problems of --sp and --sp_mode."""
    booster = run.booster
    mode = booster.sequence_parallelism
    if mode is None:
        return
    flag = f"--sp_mode {mode}"
    if mode in _LEFT_OUT:
        yield f"{flag} is left out: {_LEFT_OUT[mode]}"
        return
    can = capability(booster.plugin, "cpu")
    if mode not in can.sequence_parallel:
        others = " or ".join(f"--plugin {name}" for name in plugins_able("cpu", "sequence_parallel"))
        given = flag if booster.sp_mode is not None else f"--sp {booster.sp}"
        yield f"{given}: --plugin {booster.plugin} has no sequence parallelism; take {others}, or leave the flag out"
        return
    if mode == "split_gather":
        if booster.tp == 1:
            yield f"{flag} cuts sequences over the tensor-parallel ranks; give --tp 2 or more, or --sp_mode all_to_all"
            return
        if booster.sp not in (1, booster.tp):
            yield f"--sp {booster.sp} with {flag}: its size is that of --tp, {booster.tp}; leave --sp out"
    elif booster.sp == 1:
        yield f"{flag} with --sp 1 spreads nothing; give --sp 2 or more, or leave --sp_mode out"
        return
    ranks = booster.tp if mode == "split_gather" else booster.sp
    if run.data.max_length % ranks:
        yield (
            f"--max_length {run.data.max_length} cannot be cut for {ranks} ranks ({flag}); "
            f"give a multiple, such as {-(-run.data.max_length // ranks) * ranks}"
        )
    if mode == "all_to_all" and size is not None and size.num_heads % (booster.tp * booster.sp):
        times = f" times --tp {booster.tp}" if booster.tp > 1 else ""
        yield (
            f"--sp {booster.sp}{times} does not divide the model's {size.num_heads} attention heads, which "
            "all_to_all spreads over these ranks; give a number that does"
        )
