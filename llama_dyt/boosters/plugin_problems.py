"""What a plugin cannot do of what a run asks for: messages made from its capability."""

from __future__ import annotations

from collections.abc import Iterator

from llama_dyt.boosters.capability import Capability
from llama_dyt.boosters.strategy import STRATEGIES, able
from llama_dyt.config.run import RunConfig
from llama_dyt.core.problem import Problem

_WITHOUT = {"ep": ", with which each rank computes its tokens by all experts, gathered where they are sharded"}
"""What becomes of a run without a flag that its plugin has not, where that is not plain."""


def plugin_problems(run: RunConfig, device: str) -> Iterator[Problem]:
    """What the run's plugin cannot do, and what its strategy finds besides.

    Args:
        device: "cuda" or "cpu", for the messages.
    """
    strategy = STRATEGIES.get(run.booster.plugin)
    booster, can, plugin = run.booster, strategy.capability, f"--plugin {run.booster.plugin}"
    kind = device.split(":")[0]
    precision = booster.mixed_precision
    if precision not in can.precisions:
        yield Problem(
            "mixed_precision",
            precision,
            f"{plugin} has {' and '.join(can.precisions)} only on {kind}",
            f"take one of them, or a plugin that has {precision}: {_plugins_with_precision(precision)}",
            also=("plugin",),
        )
    for flag, ability in (
        ("tp", "tensor_parallel"),
        ("pp", "pipeline_parallel"),
        ("extra_dp", "extra_data_parallel"),
        ("ep", "expert_parallel"),
    ):
        given = getattr(booster, flag)
        if given > 1 and not getattr(can, ability):
            what = ability.replace("_", " ").replace("parallel", "parallelism")
            others = " or ".join(able(ability))
            instead = _WITHOUT.get(flag, "")
            remedy = f"take --plugin {others}, or --{flag} 1{instead}"
            yield Problem(flag, given, f"{plugin} has no {what}", remedy, also=("plugin",))
    yield from _zero_problems(run, can, strategy.zero_stage(booster.zero), plugin)
    if run.optimizer.gradient_accumulation_steps > 1 and not can.accumulation:
        yield Problem(
            "gradient_accumulation_steps",
            run.optimizer.gradient_accumulation_steps,
            f"{plugin} cannot accumulate on {kind}",
            f"give 1 and a larger --batch_size, or take {_or(able('accumulation'))}",
            also=("plugin",),
        )
    if run.optimizer.gradient_clipping > 0 and not can.clipping:
        yield Problem(
            "gradient_clipping",
            run.optimizer.gradient_clipping,
            f"{plugin} cannot clip on {kind}",
            f"give 0, or take {_or(able('clipping'))}",
            also=("plugin",),
        )
    if booster.shard_size is not None and not can.shard_size:
        takers = " or ".join(able("shard_size"))
        yield _no_effect("shard_size", booster.shard_size, plugin, f"leave it out, or take --plugin {takers}")
    yield from _memory_problems(run, can, plugin)
    if run.adapter.asked_for:
        yield from _adapter_problems(run, can, plugin)
    yield from strategy.problems(run)


def _zero_problems(run: RunConfig, can: Capability, stage: int | None, plugin: str) -> Iterator[Problem]:
    """Those of --zero, and of what depends on the stage."""
    booster = run.booster
    if stage is not None and stage not in can.zero_stages:
        if can.zero_stages:
            reason, remedy = f"{plugin} has stage {_one_of(can.zero_stages)}", "give that, or leave the flag out"
        else:
            see = " (see --shard_param_frac)" if can.shard_fraction else ""
            reason, remedy = f"{plugin} shards in its own way{see}", "leave the flag out"
        yield Problem("zero", stage, reason, remedy, also=("plugin",))
    elif stage is not None:
        if booster.pp > 1 and can.pipeline_parallel and stage not in can.pipeline_zero_stages:
            reason = f"under a pipeline {plugin} has stage {_one_of(can.pipeline_zero_stages)}"
            yield Problem(
                "zero",
                stage,
                reason,
                "give that",
                also=("pp", "plugin"),
                text=f"--zero {stage} with --pp {booster.pp}: {reason}; give that",
            )
        if booster.mixed_precision == "fp32" and "fp32" in can.precisions and stage not in can.float32_zero_stages:
            reason = f"in fp32 {plugin} has stage {_one_of(can.float32_zero_stages)}"
            yield Problem(
                "mixed_precision",
                "fp32",
                reason,
                "give that, or take bf16",
                also=("zero", "plugin"),
                text=f"--mixed_precision fp32 with --zero {stage}: {reason}; give that, or take bf16",
            )
    if booster.fp32_gradients and (not can.fp32_gradients or stage == 0):
        if can.fp32_gradients:
            reason, remedy = f"{plugin} sums them in fp32 with --zero above 0", "give --zero 1, or leave it out"
        else:
            reason = f"{plugin} sums in its working precision"
            remedy = f"take --plugin {' or '.join(able('fp32_gradients'))}, or leave it out"
        yield Problem("fp32_gradients", True, reason, remedy, also=("zero", "plugin"))


def _adapter_problems(run: RunConfig, can: Capability, plugin: str) -> Iterator[Problem]:
    """What of how a model is spread keeps an adapter from being trained in it."""
    flag, booster = run.adapter.flag, run.booster
    value = getattr(run.adapter, flag)
    if not can.adapters:
        reason, remedy = f"{plugin} trains all of a model", f"take --plugin {' or '.join(able('adapters'))}"
        yield Problem(flag, value, reason, remedy, also=("plugin",))
    if booster.pp > 1 and booster.pp_style == "zbv":
        reason = "the linear layers of --pp_style zbv put off gradients of weights, which an adapter's run has not"
        yield Problem(flag, value, reason, "take another style", also=("pp", "pp_style"))
    if run.precision.fp8 is not None:
        reason, remedy = "with --fp8 would be trained beside weights of which 8 bits are used", "leave one out"
        yield Problem(flag, value, reason, remedy, also=("fp8",), clause=True)


def _memory_problems(run: RunConfig, can: Capability, plugin: str) -> Iterator[Problem]:
    """Flags about where model data lies that the plugin would ignore."""
    booster = run.booster
    # 1, 0 and 0 are the benchmark's documented values and what every plugin does anyway, so scripts may pass them.
    neutral = {"shard_param_frac": 1.0, "offload_optim_frac": 0.0, "offload_param_frac": 0.0}
    offloads = [strategy.name for strategy in STRATEGIES if strategy.capability.offload == "fractions"]
    takers = {
        "shard_param_frac": able("shard_fraction"),
        "offload_optim_frac": offloads,
        "offload_param_frac": offloads,
    }
    for name, value in neutral.items():
        given = getattr(booster, name)
        if given is not None and given != value and booster.plugin not in takers[name]:
            yield _no_effect(name, given, plugin, f"leave it out, or take --plugin {' or '.join(takers[name])}")
    if booster.memory_limit is not None and not can.memory_plan and not run.speed.auto_checkpointing:
        planners = " or ".join(able("memory_plan"))
        remedy = f"leave it out, or take {planners} (or --auto_checkpointing, which plans with it)"
        yield _no_effect("memory_limit", booster.memory_limit, plugin, remedy)


def _no_effect(flag: str, value: float, plugin: str, remedy: str) -> Problem:
    return Problem(flag, value, f"has no effect with {plugin}", remedy, also=("plugin",), clause=True)


def _plugins_with_precision(precision: str) -> str:
    names = [strategy.name for strategy in STRATEGIES if precision in strategy.capability.precisions]
    return ", ".join(names) or "none"


def _one_of(stages: tuple[int, ...]) -> str:
    return " or ".join(str(stage) for stage in stages)


def _or(names: list[str]) -> str:
    return " or ".join(f"--plugin {name}" for name in names) or "another device"
