"""The engine's hybrid plugin for a run's settings, and where a process stands in its mesh."""

from __future__ import annotations

from llama_dyt.boosters.engine.scaler import INITIAL_SCALE

from typing import Any

import torch.distributed as dist
from colossalai.booster.plugin import HybridParallelPlugin
from torch import nn

from llama_dyt.boosters.clipping import norm_bound
from llama_dyt.boosters.expert_parallel import ExpertGroups
from llama_dyt.boosters.grid import Grid
from llama_dyt.boosters.layers.policy import DecoderPolicy
from llama_dyt.boosters.layers.zero_bubble import plan_work
from llama_dyt.boosters.materialize import WORKING_DTYPES
from llama_dyt.config.run import RunConfig
from llama_dyt.models.spec import ModelSpec


class _HybridPlugin(HybridParallelPlugin):
    """`HybridParallelPlugin.configure` puts DistributedDataParallel around a model that no other rank shares as well,
    which then copies and sums every gradient for nothing."""

    def configure(self, model: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        boosted, *rest = super().configure(model, *args, **kwargs)
        if boosted.use_ddp and self.mixed_dp_group.size() == 1:
            boosted.module, boosted.use_ddp = boosted.module.module, False
        return boosted, *rest


class _NoAdvice:
    """In place of the plugin's logger: with one data-parallel rank `HybridParallelPlugin.configure` warns of ZeRO,
    which is wanted here for its offloading."""

    def warning(self, *args: Any, **kwargs: Any) -> None: ...


def transfers_overlap() -> bool:
    """Whether interleaved stages may compute while they send: over gloo they hang."""
    return dist.get_backend() == "nccl"


def build_plugin(run: RunConfig, family: ModelSpec, stage: int, offload: bool) -> HybridParallelPlugin:
    """
    Args:
        family: of the model; says how tensor and pipeline parallelism cut it.
        stage: of ZeRO.
        offload: masters and moments in host memory.
    """
    settings = run.booster
    mode = settings.sequence_parallelism
    plugin = _HybridPlugin(
        tp_size=settings.tp,
        pp_size=settings.pp,
        sp_size=settings.sequence_ranks,
        enable_sequence_parallelism=mode is not None,
        sequence_parallelism_mode=mode,
        pp_style=settings.pp_style,
        num_model_chunks=settings.model_chunks,
        scheduler_nodes=plan_work(run) if settings.pp_style == "zbv" else None,
        zero_stage=stage,
        cpu_offload=offload,
        precision=settings.mixed_precision,
        microbatch_size=settings.micro_batch_size if settings.pp > 1 else None,
        initial_scale=INITIAL_SCALE,
        max_norm=norm_bound(run),
        custom_policy=DecoderPolicy(family, WORKING_DTYPES[settings.mixed_precision]),
        overlap_p2p=transfers_overlap(),
        gradient_as_bucket_view=True,  # else DistributedDataParallel copies every gradient back out of its buckets
    )
    if offload:
        plugin.logger = _NoAdvice()
    return plugin


def grid_of(plugin: HybridParallelPlugin, experts: ExpertGroups | None = None) -> Grid:
    """This process's coordinates in the plugin's mesh."""
    mesh = plugin.pg_mesh
    return Grid(
        dp_rank=mesh.coordinate(plugin.dp_axis),
        dp_size=mesh.size(plugin.dp_axis),
        tp_rank=mesh.coordinate(plugin.tp_axis),
        tp_size=mesh.size(plugin.tp_axis),
        pp_rank=mesh.coordinate(plugin.pp_axis),
        pp_size=mesh.size(plugin.pp_axis),
        sp_rank=mesh.coordinate(plugin.sp_axis),
        sp_size=mesh.size(plugin.sp_axis),
        tp_group=plugin.tp_group if mesh.size(plugin.tp_axis) > 1 else None,
        pp_group=plugin.pp_group if mesh.size(plugin.pp_axis) > 1 else None,
        experts=experts,
    )
