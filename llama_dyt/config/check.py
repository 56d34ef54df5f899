"""What is wrong with a run before anything is launched: every problem at once, each one line with value and remedy.

Its own file because these are the rules that tie settings together; the bounds of single values stand with their
fields. What a dataset, a tokenizer or a checkpoint holds is checked by the parts that read them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from llama_dyt.config.benchmark import benchmark_problems
from llama_dyt.config.capabilities import Capability, capability, plugins_able, zero_stage
from llama_dyt.config.layout import pipeline_problems, sequence_problems
from llama_dyt.config.precision import precision_problems
from llama_dyt.config.run import RunConfig, all_options
from llama_dyt.config.sizes import Size, read_size
from llama_dyt.config.speed import attention_notices, checkpointing_problems, compile_problems
from llama_dyt.config.validation import validation_problems
from llama_dyt.config.writable import why_not_writable
from llama_dyt.errors import ConfigurationError


def collect_problems(run: RunConfig, world_size: int | None = None, device: str | None = None) -> list[str]:
    """Everything that keeps `run` from starting; an empty list when nothing does.

    Args:
        run: the run.
        world_size: number of processes; None leaves out what depends on it.
        device: "cuda" or "cpu", the kind of device it trains on; None leaves out what depends on it.
    """
    flags = run.flags()
    problems = [opt.out_of_range(flags[opt.name]) for opt in all_options(run.kind)]
    problems = [problem for problem in problems if problem is not None]
    out_of_range = bool(problems)
    size = None
    try:
        size = model_size(run)
    except ConfigurationError as error:
        problems += error.problems
    if out_of_range:
        # Ratios of numbers that are out of range would only repeat the same mistake in other words.
        return problems + list(_path_problems(run))
    problems += _model_problems(run, size)
    problems += checkpointing_problems(run)
    if device is not None:
        try:
            problems += _booster_problems(run, capability(run.booster.plugin, device), device)
            problems += compile_problems(run, device)
        except ConfigurationError as error:
            problems += error.problems
    problems += _layout_problems(run, size, world_size)
    problems += pipeline_problems(run, size)
    problems += sequence_problems(run, size)
    problems += validation_problems(run)
    problems += _length_problems(run)
    problems += benchmark_problems(run)
    problems += precision_problems(run, device)
    problems += _path_problems(run)
    return problems


def warnings(
    run: RunConfig,
    world_size: int | None = None,
    device: str | None = None,
    *,
    total_steps: int | None = None,
) -> list[str]:
    """What is probably not meant, though the run can start.

    Args:
        run, world_size, device: as for `collect_problems`.
        total_steps: optimizer steps of the run where that is known; --max_steps otherwise.
    """
    found = []
    total_steps = total_steps if total_steps is not None else run.step_limit
    warmup = run.optimizer.warmup_steps
    if run.kind != "benchmark" and warmup and total_steps is not None and warmup >= total_steps:
        found.append(
            f"--warmup_steps {warmup} is not shorter than the run of {total_steps} steps: "
            f"the learning rate never reaches --lr {run.optimizer.lr:g}; "
            f"give less, such as --warmup_steps {min(max(total_steps // 20, 1), total_steps - 1)}"
        )
    if run.model.model_path is not None and run.model.norm is not None:
        found.append(
            f"--norm {run.model.norm} with --model_path: where the weights were trained with another norm, "
            "swapping it is an experiment, and the loss starts far above theirs"
        )
    if run.booster.mbs is not None and run.booster.pp == 1 and run.booster.mbs != 1:
        found.append(f"--mbs {run.booster.mbs} has an effect only with --pp above 1")
    if device is not None:
        found += attention_notices(run, device)
    return found


def model_size(run: RunConfig) -> Size | None:
    """The figures of the run's model; None where they stand in weights that are not on this machine yet.

    Raises:
        ConfigurationError: the size has no meaning or its file cannot be read.
    """
    path = run.model.model_path
    if path is None or run.model.config is not None:
        return run.model.size()
    for config in (Path(path), Path(path) / "model"):
        if (config / "config.json").is_file():
            return read_size(config)
    return None


def _model_problems(run: RunConfig, size: Size | None) -> Iterator[str]:
    model = run.model
    if run.kind == "finetune" and model.model_path is None:
        yield "--model_path is needed: give the HF folder, the checkpoint or the hub name of the model to fine-tune"
    if model.model_path is not None:
        given = {"config": model.config, **model.size_by_hand()}
        for name, value in given.items():
            if value is not None:
                yield f"--{name} {value} contradicts --model_path {model.model_path}, which brings its size; give one"
        path = Path(model.model_path)
        # "name" or "owner/name" may be a hub name; anything else can only be a path.
        only_a_path = model.model_path.startswith(("/", ".")) or model.model_path.count("/") > 1
        if only_a_path and not path.is_dir():
            yield f"--model_path {model.model_path}: no such folder; give an HF folder, a checkpoint or a hub name"
    if model.norm == "rmsnorm":
        for name in ("attn_alpha_init_value", "ffn_alpha_init_value", "dec_alpha_init_value"):
            if getattr(model, name) is not None:
                yield f"--{name} {getattr(model, name):g}: --norm rmsnorm has none; leave it out, or take --norm dyt"
    if model.gradient_checkpoint and model.selective_checkpointing == 0:
        yield "--gradient_checkpoint contradicts --selective_checkpointing 0, which recomputes no layer; leave one out"
    if size is None:
        return
    if size.hidden_size % size.num_heads:
        yield (
            f"--num_heads {size.num_heads} does not divide the hidden size {size.hidden_size}; "
            f"give a divisor, such as {_divisor_below(size.hidden_size, size.num_heads)}"
        )
    elif size.head_dim % 2:
        yield (
            f"--hidden_width {size.hidden_size} with --num_heads {size.num_heads} makes heads of {size.head_dim}; "
            "rotary positions need an even number: change one of the two"
        )
    if size.num_heads % size.num_key_value_heads:
        yield (
            f"--num_key_value_heads {size.num_key_value_heads} does not divide the {size.num_heads} attention heads; "
            f"give a divisor, such as {_divisor_below(size.num_heads, size.num_key_value_heads)}"
        )


def _booster_problems(run: RunConfig, can: Capability, device: str) -> Iterator[str]:
    """What the plugin cannot do on the device, made from the table of capabilities."""
    booster, plugin = run.booster, f"--plugin {run.booster.plugin}"
    kind = device.split(":")[0]
    precision = booster.mixed_precision
    if precision not in can.precisions:
        yield (
            f"--mixed_precision {precision}: {plugin} has {' and '.join(can.precisions)} only on {kind}; take one of "
            f"them, or a plugin that has {precision}: {_plugins_with_precision(kind, precision)}"
        )
    for flag, able in (
        ("tp", "tensor_parallel"),
        ("pp", "pipeline_parallel"),
        ("extra_dp", "extra_data_parallel"),
    ):
        if getattr(booster, flag) > 1 and not getattr(can, able):
            what = able.replace("_", " ").replace("parallel", "parallelism")
            others = " or ".join(plugins_able(kind, able))
            yield f"--{flag} {getattr(booster, flag)}: {plugin} has no {what}; take --plugin {others}, or --{flag} 1"
    stage = zero_stage(booster.plugin, device, booster.zero)
    if stage is not None and stage not in can.zero_stages:
        if can.zero_stages:
            yield f"--zero {stage}: {plugin} has stage {_one_of(can.zero_stages)}; give that, or leave the flag out"
        else:
            see = " (see --shard_param_frac)" if can.shard_fraction else ""
            yield f"--zero {stage}: {plugin} shards in its own way{see}; leave the flag out"
    elif stage is not None:
        if booster.pp > 1 and can.pipeline_parallel and stage not in can.pipeline_zero_stages:
            stages = _one_of(can.pipeline_zero_stages)
            yield f"--zero {stage} with --pp {booster.pp}: under a pipeline {plugin} has stage {stages}; give that"
        if precision == "fp32" and "fp32" in can.precisions and stage not in can.float32_zero_stages:
            stages = _one_of(can.float32_zero_stages)
            yield (
                f"--mixed_precision fp32 with --zero {stage}: in fp32 {plugin} has stage {stages}; "
                "give that, or take bf16"
            )
    if run.optimizer.gradient_accumulation_steps > 1 and not can.accumulation:
        yield (
            f"--gradient_accumulation_steps {run.optimizer.gradient_accumulation_steps}: {plugin} cannot accumulate on "
            f"{kind}; give 1 and a larger --batch_size, or take {_or(plugins_able(kind, 'accumulation'))}"
        )
    if run.optimizer.gradient_clipping > 0 and not can.clipping:
        yield (
            f"--gradient_clipping {run.optimizer.gradient_clipping:g}: {plugin} cannot clip on {kind}; "
            f"give 0, or take {_or(plugins_able(kind, 'clipping'))}"
        )
    if booster.shard_size is not None and not can.shard_size:
        takers = " or ".join(plugins_able(kind, "shard_size"))
        yield f"--shard_size {booster.shard_size} has no effect with {plugin}; leave it out, or take --plugin {takers}"
    yield from _memory_problems(run, can, plugin)


def _memory_problems(run: RunConfig, can: Capability, plugin: str) -> Iterator[str]:
    """Flags about where model data lies that the plugin would ignore."""
    booster = run.booster
    # 1, 0 and 0 are the benchmark's documented values and what every plugin does anyway, so scripts may pass them.
    neutral = {"shard_param_frac": 1.0, "offload_optim_frac": 0.0, "offload_param_frac": 0.0}
    has_effect = {
        "shard_param_frac": can.shard_fraction,
        "offload_optim_frac": can.offload == "fractions",
        "offload_param_frac": can.offload == "fractions",
    }
    for name, value in neutral.items():
        given = getattr(booster, name)
        if given is not None and given != value and not has_effect[name]:
            yield f"--{name} {given:g} has no effect with {plugin}; leave it out, or take --plugin gemini"
    # StaticPlacementPolicy sets the fraction to 0 with no more than a warning.
    if can.offload == "fractions" and booster.offload_param_frac:
        shard = 1.0 if booster.shard_param_frac is None else booster.shard_param_frac
        optim = booster.offload_optim_frac or 0.0
        if shard != 1.0 or optim != 1.0:
            yield (
                f"--offload_param_frac {booster.offload_param_frac:g} needs --shard_param_frac 1 (it is {shard:g}) and "
                f"--offload_optim_frac 1 (it is {optim:g}); give those, or leave it out"
            )
    if booster.memory_limit is not None and not can.memory_plan and not run.speed.auto_checkpointing:
        yield (
            f"--memory_limit {booster.memory_limit} has no effect with {plugin}; leave it out, or take gemini_auto "
            "(or --auto_checkpointing, which plans with it)"
        )


def _layout_problems(run: RunConfig, size: Size | None, world_size: int | None) -> Iterator[str]:
    """Whether ranks, heads, layers and batches can be divided as asked."""
    booster, batch_size = run.booster, run.data.batch_size
    ranks = booster.ranks_a_replica
    if world_size is not None and world_size % ranks:
        third = f" times --sp {booster.sp}" if booster.sequence_ranks > 1 else ""
        smaller = "--tp, --pp or --sp" if third else "--tp or --pp"
        yield (
            f"--tp {booster.tp} times --pp {booster.pp}{third} is {ranks}, which does not divide the {world_size} "
            f"process{'es' if world_size > 1 else ''}; launch a multiple of {ranks}, or make {smaller} smaller"
        )
    elif world_size is not None and booster.data_parallel_size(world_size) % booster.extra_dp:
        replicas = booster.data_parallel_size(world_size)
        yield (
            f"--extra_dp {booster.extra_dp} does not divide the {replicas} data-parallel ranks; "
            f"give a number that does, such as {_divisor_below(replicas, booster.extra_dp)}"
        )
    if world_size is not None and booster.shard_size is not None and world_size % booster.shard_size:
        yield (
            f"--shard_size {booster.shard_size} does not divide the {world_size} process"
            f"{'es' if world_size > 1 else ''}; give a number that does, such as "
            f"{_divisor_below(world_size, booster.shard_size)}"
        )
    if booster.pp > 1:
        micro, steps = booster.micro_batch_size, run.optimizer.gradient_accumulation_steps
        # All batches of an optimizer step go through the pipeline as one schedule.
        count = batch_size * steps // micro
        if batch_size % micro:
            yield f"--batch_size {batch_size} is not divisible by --mbs {micro}; give a multiple of {micro}"
        elif count < booster.pp:
            # OneForwardOneBackwardSchedule.load_batch asserts it: fewer would leave stages without work.
            yield (
                f"--batch_size {batch_size} times --gradient_accumulation_steps {steps} in micro batches of {micro} "
                f"makes {count}, fewer than the --pp {booster.pp} stages; make it {booster.pp} or more"
            )
    if size is None:
        return
    if booster.tp > 1:
        counts = {
            "attention heads": size.num_heads,
            "key and value heads": size.num_key_value_heads,
            "feed-forward units": size.intermediate_size,
        }
        undivided = [f"{count} {what}" for what, count in counts.items() if count % booster.tp]
        if undivided:
            divisor = _divisor_below(math.gcd(*counts.values()), booster.tp)
            yield (
                f"--tp {booster.tp} does not divide the model's {', '.join(undivided)}; "
                f"give a number that does, such as {divisor}"
            )
    if booster.pp > size.num_layers:
        yield f"--pp {booster.pp} is more than the model's {size.num_layers} layers; give at most {size.num_layers}"


def _length_problems(run: RunConfig) -> Iterator[str]:
    if run.run.dry_run_processes is not None and not run.run.dry_run:
        given = f"--dry_run_processes {run.run.dry_run_processes}"
        yield f"{given} has no effect without --dry_run; add that, or leave it out"


def _path_problems(run: RunConfig) -> Iterator[str]:
    if run.kind != "benchmark":
        if run.data.dataset is None:
            yield "--dataset is needed: give sample, a folder, a glob or a hub dataset"
        if run.run.save_dir is None:
            yield "--save_dir is needed: give the folder for checkpoints and metrics"
        load = run.run.load
        if load is not None and load != "auto" and not Path(load).is_dir():
            yield f"--load {load}: no such folder; give a checkpoint, the --save_dir of a run, or auto"
    for name in ("save_dir", "tensorboard_dir"):
        folder = getattr(run.run, name)
        if folder is not None:
            reason = why_not_writable(folder)
            if reason is not None:
                yield f"--{name} {folder}: {reason}; give a folder that can be written"


def _divisor_below(number: int, limit: int) -> int:
    """The largest divisor of `number` that is no larger than `limit`."""
    return next(divisor for divisor in range(min(limit, number), 0, -1) if number % divisor == 0)


def _plugins_with_precision(device: str, precision: str) -> str:
    names = [name for name in plugins_able(device, "precisions") if precision in capability(name, device).precisions]
    return ", ".join(names) or "none"


def _one_of(stages: tuple[int, ...]) -> str:
    return " or ".join(str(stage) for stage in stages)


def _or(names: list[str]) -> str:
    return " or ".join(f"--plugin {name}" for name in names) or "another device"
