"""The engine's hybrid plugin for a run's settings, and where a process stands in its mesh."""

from __future__ import annotations

from llama_dyt.boosters.engine.scaler import INITIAL_SCALE

from typing import Any

import torch
import torch.distributed as dist
from colossalai.booster.plugin import HybridParallelPlugin
from torch import nn
from torch.nn.parallel import DistributedDataParallel

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
        elif boosted.use_ddp:
            settle_buckets(boosted.module)
        return boosted, *rest


class _Touched(nn.Module):
    """A model's sum with weights of 0: its backward comes to every parameter, the last first, as the model's does."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__()
        self._touched = parameters  # a list: they stay the model's

    def forward(self) -> torch.Tensor:
        return torch.stack([0 * parameter.flatten()[:1].sum().float() for parameter in self._touched]).sum()


def settle_buckets(model: DistributedDataParallel) -> None:
    """Have DistributedDataParallel order its buckets now, by a backward of nothing.

    It does so in its second step, by the order in which gradients came in the first. Where a gradient lies in a bucket
    decides in which order three ranks or more add it up, so the first step of a process would round otherwise than the
    others do, and a run that is resumed would not be, to the last bit, the run that never ended.
    """
    named = [(name, parameter) for name, parameter in model.module.named_parameters() if parameter.requires_grad]
    touched = [parameter for name, parameter in named if name not in model.parameters_to_ignore]
    own, model.module = model.module, _Touched(touched)
    try:
        with torch.enable_grad():
            model().backward()
    finally:
        model.module = own
    for parameter in touched:
        parameter.grad = None


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
