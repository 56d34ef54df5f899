"""What a run would be and what it would take, without starting it: `--dry_run`."""

from __future__ import annotations

from llama_dyt.boosters.compilation import compiles
from llama_dyt.boosters.strategy import MASTER_BYTES, MOMENT_BYTES, STRATEGIES, WORKING_BYTES
from llama_dyt.models import count_parameters
from llama_dyt.models.adapters import count, trained_in_words
from llama_dyt.models.partition import StagePart
from llama_dyt.models.spec import family_of
from llama_dyt.training.distillation.teacher import teacher_parameters
from llama_dyt.training.measurement.figures import figure
from llama_dyt.training.plan import Plan
from llama_dyt.training.settings import tokens_per_step
from llama_dyt.training.sizing.memory import MemoryEstimate, estimate_memory, stage_parts

_GIB = 2.0**30


def print_dry_run(plan: Plan, total_steps: int | None) -> None:
    """Print the resolved run as YAML, and figures as its comments; on the first process.

    Args:
        total_steps: optimizer steps of the whole run; None where that is not known.
    """
    if not plan.is_first_process:
        return
    run, world_size = plan.run, plan.environment.world_size
    num_parameters = count_parameters(plan.model_config)
    tokens = tokens_per_step(run, world_size)
    print(run.to_yaml().rstrip())
    idle = family_of(plan.model_config).idle_parameters(plan.model_config)
    of_a_token = f", of which a token is computed with {num_parameters - idle:,}" if idle else ""
    print(f"# parameters      {num_parameters:,}{of_a_token}")
    parts = stage_parts(run, plan.model_config, plan.adapter)
    if plan.adapter is not None:
        print(f"# trained         {trained_in_words(plan.adapter, plan.model_config)}")
    print(f"# processes       {world_size} ({plan.device}), data-parallel {run.booster.data_parallel_size(world_size)}")
    print(f"# tokens a step   {tokens:,}")
    print(f"# compiled layers {'yes' if compiles(run, plan.device) else 'no'}")
    if plan.recomputing is not None:
        print(f"# recomputation   {plan.recomputing}")
    if total_steps is None:
        print("# steps           not known without the data; --max_steps says how many")
    else:
        print(f"# steps           {total_steps:,} ({total_steps * tokens:,} tokens)")
    for chosen in plan.validation:
        settings = run.validation
        print(
            f"# validation      every {settings.validation_freq} steps and at the end on {chosen}, at most "
            f"{settings.validation_batches} batches ({settings.validation_batches * tokens:,} tokens)"
        )
    estimates = estimate_memory(run, plan.model_config, world_size, plan.environment.local_world_size, parts)
    if run.booster.tp * run.booster.pp > 1:
        _print_parts(plan, num_parameters, parts, estimates)
    print(f"# memory a rank   {_in_words(max(estimates, key=lambda estimate: estimate.device_total))}")
    if run.run.async_save:
        distinct = max(part.num_distinct(run.booster.tp) for part in parts)
        copied = 12 * (distinct if plan.adapter is None else count(plan.adapter, plan.model_config).trained)
        print(f"# async save      {figure(copied / _GIB)} GiB more host memory on the rank that writes for a stage")
    if run.snapshots.snapshot_interval:
        print(f"# snapshots       {_snapshots_in_words(plan, parts)}")
    if plan.teacher_folder is not None:
        print(f"# teacher         {_teacher_in_words(plan)}")
    for line in plan.files:
        print(f"# data            {line}")
    for warning in plan.warnings:
        print(f"# warning: {warning}")


def _snapshots_in_words(plan: Plan, parts: list[StagePart]) -> str:
    """What snapshots take of host memory."""
    run, environment = plan.run, plan.environment
    strategy, here = STRATEGIES.get(run.booster.plugin), environment.local_world_size or environment.world_size
    ranks = strategy.shard_ranks(run, environment.world_size, environment.local_world_size)
    numbers = max(strategy.held_states(run, part, ranks) for part in parts)
    several = here < environment.world_size
    held = (4 if several else 2) * (MASTER_BYTES + MOMENT_BYTES) * numbers
    neighbour = ", a neighbour's copies among it" if several else ""
    return (
        f"{figure(held / _GIB)} GiB in {run.snapshots.snapshot_dir} for a rank, {figure(here * held / _GIB)} for the "
        f"{here} of a machine{neighbour}"
    )


def _teacher_in_words(plan: Plan) -> str:
    """What distillation takes of a rank besides: the teacher, and whole logits of both models and their gradient."""
    run, config = plan.run, plan.model_config
    taught_by, working = teacher_parameters(plan.teacher_folder), WORKING_BYTES[run.booster.mixed_precision]
    logits = run.data.batch_size * run.data.max_length * config.vocab_size * (2 * working + 4 * 4)
    return (
        f"{taught_by:,} parameters; beside what is told above {figure(taught_by * working / _GIB)} GiB, and for both "
        f"models' logits at most {figure(logits / _GIB)}"
    )


def _print_parts(plan: Plan, num_parameters: int, parts: list[StagePart], estimates: list[MemoryEstimate]) -> None:
    """What a rank of each stage holds; the tensor-parallel ranks of one stage hold equally much."""
    tp = plan.run.booster.tp
    num_parameters += count(plan.adapter, plan.model_config).added if plan.adapter is not None else 0
    had = "the model has" if plan.adapter is None else "model and adapter have"
    for stage, (part, estimate) in enumerate(zip(parts, estimates, strict=True)):
        ranks = f"each of {tp} tensor-parallel ranks" if tp > 1 else "a rank"
        print(
            f"# stage {stage:<9} layers {_ranges(part.layer_numbers)}: {part.num_parameters:,} parameters {ranks}, of "
            f"the model {part.num_distinct(tp):,}; {figure(estimate.device_total / _GIB)} GiB"
        )
    total = sum(part.num_distinct(tp) for part in parts)
    print(f"# all stages      {total:,} parameters, each counted once ({had} {num_parameters:,})")


def _ranges(numbers: tuple[int, ...]) -> str:
    """(0, 1, 2, 6, 7) as "0-2 and 6-7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return " and ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _in_words(memory: MemoryEstimate) -> str:
    text = (
        f"{figure(memory.device_total / _GIB)} GiB: parameters {figure(memory.parameters / _GIB)}, gradients "
        f"{figure(memory.gradients / _GIB)}, optimizer {figure(memory.optimizer / _GIB)}, activations about "
        f"{figure(memory.activations / _GIB)}"
    )
    return text + (f"; on the host {figure(memory.host / _GIB)}" if memory.host else "")
