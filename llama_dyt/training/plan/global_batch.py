"""The global batch on another number of ranks: it holds, and the batches accumulated for a step change.

--global_batch_size says what it is. Where that is not given, a run that resumes by the flags it was started with has
that of its checkpoint: a job that comes back on fewer or more machines takes the same sequences in the same steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_dyt.config.run import RunConfig, all_options
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.problem import Problem
from llama_dyt.training.settings import sequences_per_step


def with_global_batch(run: RunConfig, world_size: int) -> RunConfig:
    """The run with the accumulation that makes its --global_batch_size on so many processes.

    Raises:
        ConfigurationError: no whole number does.
    """
    sequences, flags = run.optimizer.global_batch_size, run.flags()
    if any(option.out_of_range(flags[option.name]) is not None for option in all_options(run.kind)):
        return run  # that is told, and makes no batch
    return run if sequences is None else _accumulating(run, world_size, sequences, "global_batch_size", sequences)


def overruled(asked: RunConfig, run: RunConfig) -> list[str]:
    """That an accumulation which was asked for is not the one that --global_batch_size makes."""
    given, taken = asked.optimizer.gradient_accumulation_steps, run.optimizer.gradient_accumulation_steps
    if asked.optimizer.global_batch_size is None or given in (1, taken):
        return []
    sequences = asked.optimizer.global_batch_size
    return [
        f"--gradient_accumulation_steps is {taken} and not the {given} that was given, as --global_batch_size "
        f"{sequences} makes it; --global_batch_size none takes that"
    ]


def batch_state(asked: RunConfig, run: RunConfig, world_size: int) -> dict[str, int]:
    """What a checkpoint keeps of its batch.

    Args:
        asked: the run as its flags are, whose accumulation may be another than that of `run`.
    """
    return {
        "sequences": sequences_per_step(run, world_size),
        "batch_size": asked.data.batch_size,
        "gradient_accumulation_steps": asked.optimizer.gradient_accumulation_steps,
    }


def with_batch_of(
    trainer_state: Mapping[str, Any], path: object, run: RunConfig, world_size: int
) -> tuple[RunConfig, list[str]]:
    """(the run with the global batch of the checkpoint it resumes from, what it should be told).

    Whoever gives another --batch_size or --gradient_accumulation_steps than before has the batch that these make, and
    is told where it is another.

    Args:
        trainer_state: of the checkpoint at `path`; those of before have no batch in it, and the run's flags hold.

    Raises:
        ConfigurationError: no whole number of batches makes the checkpoint's.
    """
    saved = trainer_state.get("batch")
    now = sequences_per_step(run, world_size)
    if saved is None or saved["sequences"] == now:
        return run, []
    before = f"the {saved['sequences']} of {path}"
    asked = {name: value for name, value in batch_state(run, run, world_size).items() if name != "sequences"}
    if run.optimizer.global_batch_size is not None or not asked.items() <= saved.items():
        return run, [f"a step has {now} sequences from here on, and not {before}; the schedule is as given"]
    held = _accumulating(run, world_size, saved["sequences"], "load", run.run.load)
    steps = held.optimizer.gradient_accumulation_steps
    return held, [
        f"--gradient_accumulation_steps is {steps} on {_ranks(run, world_size)} data-parallel ranks, so that a step "
        f"keeps {before}; another global batch is to be asked for by --global_batch_size"
    ]


def _ranks(run: RunConfig, world_size: int) -> int:
    return run.booster.data_parallel_size(world_size)


def _accumulating(run: RunConfig, world_size: int, sequences: int, flag: str, value: object) -> RunConfig:
    ranks, batch = _ranks(run, world_size), run.data.batch_size
    if ranks == 0:
        return run  # fewer processes than one replica needs, which is told by itself
    steps, left = divmod(sequences, ranks * batch)
    if left == 0:
        return run.replace(gradient_accumulation_steps=steps)
    whose = "its checkpoint's" if flag == "load" else "these"
    fitting = [count for count in range(1, sequences // batch + 1) if sequences % (count * batch) == 0]
    near = sorted(fitting, key=lambda count: abs(count - ranks))[:4]
    remedy = f"take {_either(near)} data-parallel ranks" if near else f"take a --batch_size that divides {sequences}"
    batches = [size for size in range(1, batch) if sequences % (ranks * size) == 0]
    remedy += f", or --batch_size {batches[-1]}" if batches else ""
    others = [count * ranks * batch for count in (steps, steps + 1) if count]
    remedy += f", or --global_batch_size {_either(others)}"
    reason = (
        f"{whose} {sequences} sequences a step cannot be made of {ranks} data-parallel ranks with --batch_size "
        f"{batch}: {sequences} / ({ranks} x {batch}) = {sequences / (ranks * batch):.4g} batches each"
    )
    raise ConfigurationError(Problem(flag, value, reason, remedy, also=("batch_size",)))


def _either(numbers: list[int]) -> str:
    words = [str(number) for number in sorted(numbers)]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
