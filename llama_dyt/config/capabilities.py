"""What each booster plugin can do on each kind of device: one table, which the checks and the boosters both read.

Its own file so that a new plugin is one entry here and its messages follow from it. The limits are Colossal-AI
0.5.0's own; the upstream symbol stands beside each. This file does not import Colossal-AI.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from llama_dyt.config.suggest import unknown
from llama_dyt.errors import ConfigurationError

Offload = Literal["none", "fractions", "automatic", "always"]
"""none: everything stays on the device. fractions: as --offload_optim_frac and --offload_param_frac say.
automatic: as memory runs short. always: gradients, masters and optimizer states are on the host."""


@dataclass(frozen=True)
class Capability:
    """What one plugin can do on one kind of device.

    Args:
        precisions: values of --mixed_precision it trains in.
        clipping: it can clip the global gradient norm, and report it.
        accumulation: several micro batches can make one optimizer step.
        offload: how model data may leave the device.
        compile: decoder layers may be compiled (Gemini's tensor hooks cannot be traced); `speed.py` names the
            layouts in which they may not.
        float8: --fp8: it keeps linear layers as they are, and their parameters where they can be read.
        tensor_parallel, pipeline_parallel, extra_data_parallel: --tp, --pp, --extra_dp above 1.
        sequence_parallel: the values of --sp_mode it accepts.
        zero_stages: the values of --zero it accepts; empty where the plugin shards in a way of its own.
        default_zero_stage: the stage when --zero is left out; None as above.
        pipeline_zero_stages: the stages it accepts when --pp is above 1.
        float32_zero_stages: the stages it accepts in fp32.
        shard_fraction: --shard_param_frac has an effect.
        memory_plan: --memory_limit and --warmup_ratio have an effect.
        fully_sharded: torch's `fully_shard` cuts parameters, gradients and optimizer states; masters are the shards.
        shard_size: --shard_size has an effect.
    """

    precisions: tuple[str, ...] = ("fp16", "bf16", "fp32")
    clipping: bool = True
    accumulation: bool = True
    offload: Offload = "none"
    compile: bool = True
    float8: bool = True
    tensor_parallel: bool = False
    pipeline_parallel: bool = False
    sequence_parallel: tuple[str, ...] = ()
    extra_data_parallel: bool = False
    zero_stages: tuple[int, ...] = ()
    default_zero_stage: int | None = None
    pipeline_zero_stages: tuple[int, ...] = ()
    float32_zero_stages: tuple[int, ...] = ()
    shard_fraction: bool = False
    memory_plan: bool = False
    fully_sharded: bool = False
    shard_size: bool = False


# gemini_plugin.SUPPORTED_PRECISION; GeminiDDP asserts the same two.
_GEMINI = Capability(
    precisions=("fp16", "bf16"),
    compile=False,
    float8=False,  # ColoParameter's hooks see no autograd function of ours
    offload="fractions",
    shard_fraction=True,
    tensor_parallel=True,
    extra_data_parallel=True,
)
# placement_policy="auto" ignores the fractions of StaticPlacementPolicy and plans from the memory it sees.
_GEMINI_AUTO = replace(_GEMINI, offload="automatic", shard_fraction=False, memory_plan=True)
_ZERO2 = Capability(zero_stages=(2,), default_zero_stage=2, float32_zero_stages=(2,))
_ZERO1 = replace(_ZERO2, zero_stages=(1,), default_zero_stage=1, float32_zero_stages=(1,))
_ZERO2_CPU = replace(_ZERO2, offload="always")
# HybridParallelPlugin.__init__: "zero stage must be 0 or 1 when using pipeline parallelism";
# HybridParallelPlugin.configure: "set precision to 'fp16' or 'bf16' when using ZeRO".
_HYBRID = Capability(
    float8=False,  # tensor parallelism replaces the linear layers, zbv takes their backward apart
    tensor_parallel=True,
    pipeline_parallel=True,
    sequence_parallel=("all_to_all", "split_gather"),
    zero_stages=(0, 1, 2),
    default_zero_stage=0,
    pipeline_zero_stages=(0, 1),
    float32_zero_stages=(0,),
)
# The hybrid plugin with nothing cut: torch's DistributedDataParallel, and fp32 masters in half precision.
_DDP = Capability(zero_stages=(0,), default_zero_stage=0, float32_zero_stages=(0,))
_FSDP = Capability(fully_sharded=True)
_FSDP_CPU = replace(_FSDP, offload="always")
_HSDP = replace(_FSDP, shard_size=True)

# Offloading is part of its ZeRO optimizer, so stage 0 has none.
_HYBRID_CPU = replace(
    _HYBRID,
    precisions=("fp16", "bf16"),
    offload="always",
    zero_stages=(1, 2),
    default_zero_stage=1,
    pipeline_zero_stages=(1,),
    float32_zero_stages=(),
)

DEVICES: tuple[str, ...] = ("cuda", "cpu")

# A plugin that differs by device gives the two entries different values.
CAPABILITIES: dict[str, dict[str, Capability]] = {
    "gemini": {"cuda": _GEMINI, "cpu": _GEMINI},
    "gemini_auto": {"cuda": _GEMINI_AUTO, "cpu": _GEMINI_AUTO},
    "zero1": {"cuda": _ZERO1, "cpu": _ZERO1},
    "zero2": {"cuda": _ZERO2, "cpu": _ZERO2},
    "zero2_cpu": {"cuda": _ZERO2_CPU, "cpu": _ZERO2_CPU},
    "hybrid_parallel": {"cuda": _HYBRID, "cpu": _HYBRID},
    "hybrid_parallel_cpu": {"cuda": _HYBRID_CPU, "cpu": _HYBRID_CPU},
    "ddp": {"cuda": _DDP, "cpu": _DDP},
    "fsdp": {"cuda": _FSDP, "cpu": _FSDP},
    "fsdp_cpu": {"cuda": _FSDP_CPU, "cpu": _FSDP_CPU},
    "hsdp": {"cuda": _HSDP, "cpu": _HSDP},
}

PLUGIN_ALIASES: dict[str, str] = {"3d": "hybrid_parallel", "3d_cpu": "hybrid_parallel_cpu"}
PLUGINS: tuple[str, ...] = tuple(CAPABILITIES)


def canonical_plugin(name: str) -> str | None:
    """The plugin `name` stands for (`3d` is `hybrid_parallel`; letter case and `-` do not matter), or None."""
    plain = name.strip().lower().replace("-", "_")
    plain = PLUGIN_ALIASES.get(plain, plain)
    return plain if plain in CAPABILITIES else None


def capability(plugin: str, device: str) -> Capability:
    """What `plugin` (or an alias) can do on `device` ("cuda" or "cpu"; "cuda:0" counts as "cuda").

    Raises:
        ConfigurationError: there is no such plugin, or it does not run on that kind of device.
    """
    name = canonical_plugin(plugin)
    if name is None:
        raise ConfigurationError(f"--plugin: {unknown('plugin', plugin, [*PLUGINS, *PLUGIN_ALIASES])}")
    by_device = CAPABILITIES[name]
    kind = device.split(":")[0]
    if kind not in by_device:
        able = ", ".join(plugin for plugin, devices in CAPABILITIES.items() if kind in devices) or "no plugin here"
        raise ConfigurationError(f"--plugin {name} does not run on {kind!r}; what does: {able}")
    return by_device[kind]


def zero_stage(plugin: str, device: str, requested: int | None, ranks: int | None = None) -> int | None:
    """The ZeRO stage a run has: as requested, else the plugin's own; None for a plugin that has no such stages.

    Args:
        ranks: how many would share the states, where that is known. One has stage 0: ZeRO would divide nothing, and
            only copy. Offloading is part of it, so where there is that the stage stays.
    """
    can = capability(plugin, device)
    stage = requested if requested is not None else can.default_zero_stage
    return 0 if stage and ranks == 1 and can.offload == "none" else stage


def plugins_able(device: str, ability: str) -> list[str]:
    """The plugins for which the `Capability` field `ability` is true on `device`: what an error can recommend."""
    return [name for name, devices in CAPABILITIES.items() if device in devices and getattr(devices[device], ability)]
