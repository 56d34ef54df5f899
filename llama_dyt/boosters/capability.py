"""What a strategy can do, as data that checks and messages follow from; no engine in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Offload = Literal["none", "fractions", "automatic", "always"]
"""none: everything stays on the device. fractions: as --offload_optim_frac and --offload_param_frac say.
automatic: as memory runs short. always: gradients, masters and optimizer states are on the host."""


@dataclass(frozen=True)
class Capability:
    """What one strategy can do.

    Args:
        precisions: values of --mixed_precision it trains in.
        clipping: it can clip the global gradient norm, and report it.
        accumulation: several micro batches can make one optimizer step.
        offload: how model data may leave the device.
        compile: decoder layers may be compiled; `compilation.py` names the layouts in which they may not.
        float8: --fp8: it keeps linear layers as they are, and their parameters where they can be read.
        tensor_parallel, pipeline_parallel, extra_data_parallel: --tp, --pp, --extra_dp above 1.
        expert_parallel: --ep above 1.
        sequence_parallel: the values of --sp_mode it accepts.
        zero_stages: the values of --zero it accepts; empty where the plugin shards in a way of its own.
        default_zero_stage: the stage when --zero is left out; None as above.
        pipeline_zero_stages: the stages it accepts when --pp is above 1.
        float32_zero_stages: the stages it accepts in fp32.
        shard_fraction: --shard_param_frac has an effect.
        memory_plan: --memory_limit and --warmup_ratio have an effect.
        fp32_gradients: --fp32_gradients: gradients are, or can be, summed over ranks and micro batches in fp32; of
            plugins with ZeRO stages in stages above 0.
        shard_size: --shard_size has an effect.
        distillation: --distill_from: a step's logits can be compared with a teacher's, where no rank shares a sequence.
        adapters: --lora_rank and --adapter: parameters may be frozen.
    """

    precisions: tuple[str, ...] = ("fp16", "bf16", "fp32")
    clipping: bool = True
    accumulation: bool = True
    offload: Offload = "none"
    compile: bool = True
    float8: bool = True
    tensor_parallel: bool = False
    pipeline_parallel: bool = False
    expert_parallel: bool = False
    sequence_parallel: tuple[str, ...] = ()
    extra_data_parallel: bool = False
    zero_stages: tuple[int, ...] = ()
    default_zero_stage: int | None = None
    pipeline_zero_stages: tuple[int, ...] = ()
    float32_zero_stages: tuple[int, ...] = ()
    shard_fraction: bool = False
    memory_plan: bool = False
    fp32_gradients: bool = False
    shard_size: bool = False
    adapters: bool = True
    distillation: bool = True
