"""The registry of booster plugins: a run's settings → a Colossal-AI plugin of the installed engine.

What each plugin can do stands in `config/capabilities.py`, which refused impossible settings before this is reached.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from colossalai.booster.plugin import HybridParallelPlugin, LowLevelZeroPlugin
from colossalai.booster.plugin.plugin_base import Plugin
from torch import nn

from llama_dyt.config.capabilities import capability, zero_stage
from llama_dyt.config.run import RunConfig
from llama_dyt.errors import ConfigurationError
from llama_dyt.models.families import Family

from .launch import device_type, read_environment
from .materialize import WORKING_DTYPES
from .scaler import INITIAL_SCALE

NO_CLIPPING = 1e30
"""Bound passed when clipping is off: hybrid and Gemini optimizers compute a grad norm only under a bound."""


def max_norm(run: RunConfig) -> float:
    """The clipping bound to hand to the engine, never 0."""
    return run.optimizer.gradient_clipping or NO_CLIPPING


def _zero_stage(run: RunConfig) -> int:
    settings = run.booster
    ranks = dist.get_world_size() // (settings.tp * settings.pp)
    return zero_stage(settings.plugin, device_type(), settings.zero, ranks)


def _low_level_zero(run: RunConfig, family: Family, num_parameters: int, cpu_offload: bool = False) -> Plugin:
    stage = _zero_stage(run)
    if stage == 0:
        return _hybrid_parallel(run, family, num_parameters)
    return LowLevelZeroPlugin(
        stage=stage,
        precision=run.booster.mixed_precision,
        initial_scale=INITIAL_SCALE,
        max_norm=max_norm(run),
        cpu_offload=cpu_offload,
    )


def _zero2_cpu(run: RunConfig, family: Family, num_parameters: int) -> Plugin:
    return _low_level_zero(run, family, num_parameters, cpu_offload=True)


class _HybridParallelPlugin(HybridParallelPlugin):
    """`HybridParallelPlugin.configure` puts DistributedDataParallel around a model that no other rank shares as well,
    which then copies and sums every gradient for nothing."""

    def configure(self, model: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        boosted, *rest = super().configure(model, *args, **kwargs)
        if boosted.use_ddp and self.mixed_dp_group.size() == 1:
            boosted.module, boosted.use_ddp = boosted.module.module, False
        return boosted, *rest


def _hybrid_parallel(run: RunConfig, family: Family, num_parameters: int, cpu_offload: bool = False) -> Plugin:
    from .policy import DecoderPolicy
    from .zero_bubble import zero_bubble_schedule

    settings = run.booster
    mode = settings.sequence_parallelism
    return _HybridParallelPlugin(
        tp_size=settings.tp,
        pp_size=settings.pp,
        sp_size=settings.sequence_ranks,
        enable_sequence_parallelism=mode is not None,
        sequence_parallelism_mode=mode,
        pp_style=settings.pp_style,
        num_model_chunks=settings.model_chunks,
        scheduler_nodes=zero_bubble_schedule(run) if settings.pp_style == "zbv" else None,
        zero_stage=_zero_stage(run),
        cpu_offload=cpu_offload,
        precision=settings.mixed_precision,
        microbatch_size=settings.micro_batch_size if settings.pp > 1 else None,
        initial_scale=INITIAL_SCALE,
        max_norm=max_norm(run),
        custom_policy=DecoderPolicy(family, WORKING_DTYPES[settings.mixed_precision]),
        overlap_p2p=False,  # interleaved stages over gloo hang with it
        gradient_as_bucket_view=True,  # else DistributedDataParallel copies every gradient back out of its buckets
    )


def _hybrid_parallel_cpu(run: RunConfig, family: Family, num_parameters: int) -> Plugin:
    plugin = _hybrid_parallel(run, family, num_parameters, cpu_offload=True)
    plugin.logger = _NoAdvice()
    return plugin


class _NoAdvice:
    """In place of the plugin's logger: with one data-parallel rank `HybridParallelPlugin.configure` warns of ZeRO,
    which is wanted here for its offloading."""

    def warning(self, *args: Any, **kwargs: Any) -> None: ...


def _ddp(run: RunConfig, family: Family, num_parameters: int) -> Plugin:
    """HybridParallelPlugin with nothing cut, which wraps torch's DistributedDataParallel.

    Not Colossal-AI's TorchDDPPlugin: its optimizer knows no gradient norm (`TorchDDPPlugin` leaves
    `OptimizerWrapper.get_grad_norm`, which raises), and in half precision it keeps no fp32 masters.
    """
    return _hybrid_parallel(run, family, num_parameters)


def _fsdp(run: RunConfig, family: Family, num_parameters: int) -> Plugin:
    from .fsdp import FsdpPlugin

    settings, world_size = run.booster, dist.get_world_size()
    shard_size = settings.shard_ranks(world_size, read_environment().local_world_size)
    if world_size % shard_size:  # only of machines with unlike numbers of processes; --shard_size itself was checked
        raise ConfigurationError(
            f"--plugin {settings.plugin}: the {shard_size} processes of this machine do not divide the {world_size} of "
            "the run; give --shard_size"
        )
    return FsdpPlugin(
        precision=settings.mixed_precision,
        initial_scale=INITIAL_SCALE,
        max_norm=max_norm(run),
        shard_size=shard_size,
        cpu_offload=capability(settings.plugin, device_type()).offload == "always",
    )


def _gemini(run: RunConfig, family: Family, num_parameters: int) -> Plugin:
    from .gemini import build_gemini

    return build_gemini(run, family, num_parameters, max_norm=max_norm(run))


PLUGINS: dict[str, Callable[[RunConfig, Family, int], Plugin]] = {
    "gemini": _gemini,
    "gemini_auto": _gemini,
    "zero1": _low_level_zero,
    "zero2": _low_level_zero,
    "zero2_cpu": _zero2_cpu,
    "hybrid_parallel": _hybrid_parallel,
    "hybrid_parallel_cpu": _hybrid_parallel_cpu,
    "ddp": _ddp,
    "fsdp": _fsdp,
    "fsdp_cpu": _fsdp,
    "hsdp": _fsdp,
}


def build_plugin(run: RunConfig, family: Family, num_parameters: int) -> Plugin:
    """Make the plugin named by the run; the process group must exist.

    Args:
        num_parameters: of the whole model; Gemini sizes its chunks by it.
    """
    return PLUGINS[run.booster.plugin](run, family, num_parameters)
