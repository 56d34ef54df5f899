"""What of Colossal-AI this package replaces or overrides, each symbol as it is in the release that it was written for.

An engine that has renamed one would go on without a word: by its own clipping, say, which lets a norm of nan pass. So
all of them are looked at together, at launch, before the first is replaced.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from importlib.metadata import version
from typing import Any

from llama_dyt.core.errors import ConfigurationError

WRITTEN_FOR = "0.5.0"

PROPERTY = "a property"

_NORM_OF_PAIRS = "self, param_gradient_pairs, norm_type"
_CONFIGURE = "self, model, optimizer, criterion, dataloader, lr_scheduler"

SYMBOLS: dict[str, dict[str, str]] = {
    "colossalai.amp.naive_amp.mixed_precision_mixin": {
        "FP16MixedPrecisionMixin.check_local_overflow": "self",
        "FP16MixedPrecisionMixin.get_grad_div_scale": "self",
        "FP16MixedPrecisionMixin.pre_backward_by_grad": "self, tensor, grad",
        "FP16MixedPrecisionMixin.should_skip_step": "self",
    },
    "colossalai.amp.naive_amp.mixed_precision_optimizer": {
        "MixedPrecisionOptimizer._compute_grad_norm": _NORM_OF_PAIRS,
        "MixedPrecisionOptimizer._unscale_and_clip_grads": "self, total_norm",
    },
    "colossalai.booster.plugin": {
        "GeminiPlugin.configure": _CONFIGURE,
        "HybridParallelPlugin.configure": _CONFIGURE,
    },
    "colossalai.booster.plugin.hybrid_parallel_plugin": {
        "HybridParallelAMPOptimizer._compute_grad_norm": _NORM_OF_PAIRS,
        "HybridParallelModule.sync_dp_grads": "self",
        "HybridParallelNaiveOptimizer._clip_grad_norm": "self, total_norm",
        "HybridParallelNaiveOptimizer._compute_grad_norm": _NORM_OF_PAIRS,
        "HybridParallelZeroOptimizer._compute_grad_norm": "self, dp_pg, gradients, norm_type",
        "HybridParallelZeroOptimizer._sync_sp_grads": "self",
    },
    "colossalai.cluster": {"ProcessGroupMesh.destroy_mesh_process_groups": "self"},
    "colossalai.logging": {"DistributedLogger.debug": "self, message, ranks"},
    "colossalai.nn.optimizer": {"HybridAdam.step": "self, closure, div_scale"},
    "colossalai.pipeline.p2p": {"_check_for_nccl_hccl_backend": "group"},
    "colossalai.pipeline.schedule.zero_bubble_pp": {
        "ZeroBubbleVPipeScheduler.run_forward_backward": (
            "self, model_chunk, data_iter, criterion, optimizer, return_loss, return_outputs"
        ),
        "ZeroBubbleVPipeScheduler.run_forward_only": (
            "self, model_chunk, data_iter, criterion, return_loss, return_outputs"
        ),
    },
    "colossalai.pipeline.weight_grad_store": {"WeightGradStore.put": "cls, total_input, grad_output, weight, func"},
    "colossalai.zero": {
        "GeminiDDP._init_chunks": "self, param_order, strict_ddp_mode, cpu_offload, pin_memory",
        "GeminiDDP._post_forward": "self",
        "GeminiDDP._preprocess_param": "self, p",
        "GeminiDDP.backward": "self, loss",
        "GeminiDDP.forward": "self, args, kwargs",
        "GeminiOptimizer._calc_global_norm": "self",
        "GeminiOptimizer.step": "self, args, kwargs",
        "LowLevelZeroOptimizer.__init__": (
            "self, optimizer, pg_to_param_list, initial_scale, min_scale, growth_factor, backoff_factor, "
            "growth_interval, hysteresis, max_scale, clip_grad_norm, verbose, reduce_bucket_size, "
            "communication_dtype, overlap_communication, partition_grad, cpu_offload, dp_process_group, "
            "extra_dp_group, forced_dtype, master_weights, overlap_allgather, fp8_communication, backward_context"
        ),
        "LowLevelZeroOptimizer._compute_grad_norm": "self, dp_pg, gradients, norm_type",
        "LowLevelZeroOptimizer._reduce_grad": "self, partition_grad",
        "LowLevelZeroOptimizer._sanity_checks": "self",
        "LowLevelZeroOptimizer._unscale_and_clip_grads": "self, grad_groups_flat, total_norm",
        "LowLevelZeroOptimizer.backward": "self, loss, inputs, retain_graph",
    },
    "colossalai.zero.low_level.bookkeeping": {"BucketStore.get_flatten_grad": "self"},
    "colossalai.zero.gemini.chunk": {
        "Chunk.close_chunk": "self",
        "Chunk.device_type": PROPERTY,
        "Chunk.set_l2_norm": "self",
        "Chunk.shard_move": "self, device, force_copy, non_blocking",
        "ChunkManager.init_grad_chunk": "self, chunk",
        "ChunkManager.move_chunk": "self, chunk, device, force_copy, async_move",
        "ChunkManager.rearrange_accumulated_grad_chunk": "self, chunk",
    },
    "colossalai.zero.gemini.memory_tracer.memstats_collector": {
        "MemStatsCollector.sample_overall_data": "self",
        "MemStatsCollector.start_collection": "self",
    },
    "colossalai.zero.gemini.placement_policy": {
        "AutoPlacementPolicy.evict_tensors": (
            "self, can_evict_chunks, cuda_demand, warmup, compute_list, compute_idx, kwargs"
        ),
        "StaticPlacementPolicy.setup_grads_device": "self, params, grads_device_map",
    },
}
"""Module → symbol → its parameters."""


def check_engine() -> None:
    """Compare the installed engine with SYMBOLS.

    Raises:
        ConfigurationError: naming every symbol that is absent or takes other parameters.
    """
    differences = [
        f"{module}.{name} {found}, expected ({parameters})"
        for module, symbols in SYMBOLS.items()
        for name, parameters in symbols.items()
        if (found := _difference(module, name, parameters)) is not None
    ]
    if differences:
        raise ConfigurationError(
            [
                f"Colossal-AI {version('colossalai')} is not the engine that this program adapts; install that one: "
                f"pip install --no-deps colossalai=={WRITTEN_FOR}. What differs:",
                *differences,
            ]
        )


def _difference(module: str, name: str, parameters: str) -> str | None:
    try:
        symbol = functools.reduce(inspect.getattr_static, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError):
        return "is gone"
    if isinstance(symbol, property):
        found = PROPERTY
    else:
        found = ", ".join(inspect.signature(getattr(symbol, "__func__", symbol)).parameters)
    return None if found == parameters else f"takes ({found})"


def replace(owner: Any, name: str, replacement: Any) -> None:
    """Put something of ours in the place of an engine's symbol, which stands in SYMBOLS.

    Args:
        owner: a class or module of the engine; or an optimizer, whose own calls alone are replaced then.
    """
    assert _is_listed(owner, name), f"{owner!r}.{name} is replaced, and not in upstream.SYMBOLS"
    setattr(owner, name, replacement)


def _is_listed(owner: Any, name: str) -> bool:
    if inspect.ismodule(owner):
        return name in SYMBOLS.get(owner.__name__, {})
    classes = inspect.getmro(owner if inspect.isclass(owner) else type(owner))
    listed = {symbol for symbols in SYMBOLS.values() for symbol in symbols}
    return any(f"{kind.__name__}.{name}" in listed for kind in classes)
