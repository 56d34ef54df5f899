"""What Colossal-AI 0.5.0 needs to run on current torch and transformers, on any device.

Each entry here answers a fault of the engine, names the upstream symbol, and can be deleted when the engine mends it.
Importing this module imports the engine; only `apply_compat()`, called once at launch, changes it. What a CPU needs
besides is in `host.py`.
"""

from __future__ import annotations

from llama_dyt.boosters.engine.upstream import check_engine, replace

import functools
import importlib
import logging
import os
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist

_UNUSED_PACKAGES: dict[str, tuple[str, ...]] = {
    # LoRA: colossalai.interface.model, checkpoint_io.utils and the plugins import these names at module level.
    "peft": ("PeftModel", "PeftType"),
    "peft.utils": (),
    "peft.utils.other": ("EMBEDDING_LAYER_NAMES", "check_file_exists_on_hf_hub"),
    "peft.utils.save_and_load": ("get_embedding_layer_name", "has_valid_embedding_base_layer"),
    # GaLore: colossalai.nn.optimizer imports both packages at module level; bitsandbytes alone is tens of megabytes.
    "galore_torch": ("GaLoreAdafactor", "GaLoreAdamW"),
    "bitsandbytes": (),
    "bitsandbytes.optim": (),
    "bitsandbytes.optim.optimizer": ("Optimizer2State",),
}
"""Modules the engine imports at module level for features this project does not have, with the names it takes."""

_ENGINE_MODULES = ("colossalai", "colossalai.booster.plugin", "colossalai.nn.optimizer", "colossalai.zero")

DEVICE_CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"

_applied = False


@contextmanager
def _stand_ins_for_unused_packages() -> Iterator[None]:
    """Let the engine import without LoRA's and GaLore's packages.

    Empty classes of the right names stand in, even where the real packages are installed: the releases the engine pins
    do not import on transformers 5. They leave `sys.modules` at once, so nobody else takes them for the real ones.
    """
    absent = [name for name in _UNUSED_PACKAGES if name.partition(".")[0] not in sys.modules]
    for name in absent:
        module = types.ModuleType(
            name, "Stand-in made while Colossal-AI is imported; see llama_dyt.boosters.engine.compat."
        )
        module.__path__ = []
        for attribute in _UNUSED_PACKAGES[name]:
            setattr(module, attribute, type(attribute, (), {"__module__": name}))
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in absent:
            sys.modules.pop(name, None)


@contextmanager
def _compiling_deferred() -> Iterator[None]:
    """Let the engine import without the compiler.

    Upstream `quantization.fp8` and `shardformer.layer.attn` decorate functions with `torch.compile`, which imports the
    whole of inductor: two seconds at every start, for functions that no run here calls. They are compiled when called.
    """
    upstream = torch.compile

    def compile_when_called(model: Callable | None = None, **options) -> Callable:
        if model is None:
            return lambda function: compile_when_called(function, **options)
        compiled = functools.cache(lambda: upstream(model, **options))
        return functools.wraps(model)(lambda *args, **kwargs: compiled()(*args, **kwargs))

    torch.compile = compile_when_called
    try:
        yield
    finally:
        torch.compile = upstream


@contextmanager
def _device_connections_kept() -> Iterator[None]:
    """Upstream `initialize` sets CUDA_DEVICE_MAX_CONNECTIONS to 1 when it is imported, whatever the user set. That
    orders the kernels of tensor parallelism and forbids what FSDP and ZeRO overlap; `launch` sets it where wanted."""
    given = os.environ.get(DEVICE_CONNECTIONS)
    try:
        yield
    finally:
        os.environ.pop(DEVICE_CONNECTIONS, None)
        if given is not None:
            os.environ[DEVICE_CONNECTIONS] = given


def _import_engine() -> None:
    with (
        _device_connections_kept(),
        _stand_ins_for_unused_packages(),
        _compiling_deferred(),
        warnings.catch_warnings(),
    ):
        # Three notices about packages that only unused features of the engine take (async save, fused norms).
        warnings.filterwarnings("ignore", message="Please install (apex|the latest tensornvme)")
        warnings.filterwarnings("ignore", category=SyntaxWarning, module="colossalai")
        for name in _ENGINE_MODULES:
            importlib.import_module(name)


_import_engine()


def apply_compat() -> None:
    """Adapt the engine to this torch, whatever is used of it. Calling it again does nothing.

    Raises:
        ConfigurationError: it is not the engine that is adapted here.
    """
    global _applied
    if _applied:
        return
    check_engine()
    _applied = True
    _mend_pipeline_backend_check()
    _mend_mesh_destruction()
    _mend_gemini_accumulation()
    _mend_gemini_fractions()
    _mend_gemini_norm()
    _mend_zero_waiting()
    _mend_unheard_messages()
    _silence_engine_noise()


def _mend_pipeline_backend_check() -> None:
    """Upstream `pipeline.p2p._check_for_nccl_hccl_backend` reads `Backend.HCCL` and `is_hccl_available`, which exist
    only in Huawei's build of torch, so any point-to-point transfer off nccl raises AttributeError."""
    from colossalai.pipeline import p2p

    replace(p2p, "_check_for_nccl_hccl_backend", lambda group: dist.get_backend(group) in ("nccl", "hccl"))


def _mend_mesh_destruction() -> None:
    """Upstream `ProcessGroupMesh.destroy_mesh_process_groups` runs from the plugins' `__del__`. At the interpreter's
    end torch.distributed is already half gone and it prints a traceback after a good run; after an orderly shutdown
    the groups no longer exist."""
    from colossalai.cluster import ProcessGroupMesh

    upstream = ProcessGroupMesh.destroy_mesh_process_groups

    def destroy_mesh_process_groups(self: ProcessGroupMesh) -> None:
        if not sys.is_finalizing() and dist is not None and dist.is_initialized():
            upstream(self)

    replace(ProcessGroupMesh, "destroy_mesh_process_groups", destroy_mesh_process_groups)


def _mend_gemini_accumulation() -> None:
    """Upstream `ChunkManager.rearrange_accumulated_grad_chunk` multiplies what was accumulated by the group's size, to
    undo the division after the next reduction. Right for a sharded chunk, whose part one rank alone puts in; in a
    gathered chunk every rank puts it in, so earlier micro batches counted once too often for every further rank."""
    from colossalai.zero.gemini.chunk import Chunk, ChunkManager

    upstream = ChunkManager.rearrange_accumulated_grad_chunk

    @functools.wraps(upstream)
    def rearrange_accumulated_grad_chunk(self: ChunkManager, chunk: Chunk) -> Chunk:
        if chunk.grad_chunk.is_gathered:
            return self.init_grad_chunk(chunk)  # opens the chunk again and leaves what it holds
        return upstream(self, chunk)

    replace(ChunkManager, "rearrange_accumulated_grad_chunk", rearrange_accumulated_grad_chunk)


def _mend_gemini_fractions() -> None:
    """Upstream `StaticPlacementPolicy.setup_grads_device` adds up a chunk's memory once for each of its parameters, so
    `offload_optim_frac=0.1` can mean all, and goes through chunks in the order of their addresses, so ranks and runs
    offload different ones."""
    from colossalai.zero.gemini import placement_policy

    def setup_grads_device(self, params, grads_device_map) -> None:
        chunks = self.chunk_manager.get_chunks(params)
        total = sum(chunk.chunk_mem for chunk in chunks)
        offloaded = 0
        for chunk in chunks:
            stays = chunk.keep_gathered or offloaded >= total * self.offload_optim_frac
            # Through the module: on a CPU, `strategies/gemini/host.py` gives that one an accelerator of its own.
            compute_device = placement_policy.get_accelerator().get_current_device()
            for param in chunk.get_tensors():
                grads_device_map[param] = compute_device if stays else torch.device("cpu")
            offloaded += 0 if stays else chunk.chunk_mem
        self.keep_gathered_chunk_mem = total * (1 - self.shard_param_frac)
        self.keep_cuda_chunk_mem = total * (1 - self.offload_param_frac)

    replace(placement_policy.StaticPlacementPolicy, "setup_grads_device", setup_grads_device)


def _mend_gemini_norm() -> None:
    """Upstream `Chunk.set_l2_norm` takes one long fp32 norm of an fp32 copy, see `squares.py`."""
    from colossalai.zero.gemini.chunk import Chunk

    from llama_dyt.boosters.squares import sum_of_squares

    def set_l2_norm(self: Chunk) -> None:
        assert self.l2_norm is None, "the norm of a chunk is taken once"
        held = self.cuda_global_chunk[: self.utilized_size] if self.is_gathered else self.cuda_shard[: self.valid_end]
        self.l2_norm = float(sum_of_squares([held.detach()]))  # the square, as upstream keeps it

    replace(Chunk, "set_l2_norm", set_l2_norm)


def _mend_zero_waiting() -> None:
    """Upstream `LowLevelZeroOptimizer.backward` has the host wait for the whole device after every micro batch, where
    its stream need only wait for the one that reduces gradients. That one waits for the other before each reduction, so
    memory it gave up is not written to while the other still reads."""
    from colossalai.accelerator import get_accelerator
    from colossalai.zero import LowLevelZeroOptimizer

    def backward(
        self: LowLevelZeroOptimizer, loss: torch.Tensor, inputs: list[torch.Tensor] | None = None, retain_graph=False
    ) -> None:
        if self.mixed_precision_mixin is not None:
            loss = self.mixed_precision_mixin.pre_backward(loss)
        with self._backward_context() if self._backward_context is not None else nullcontext():
            loss.backward(inputs=inputs, retain_graph=retain_graph)
        if not self.require_grad_sync:
            return
        self._reduce_grad(self._partition_grads)
        if self._overlap_communication:
            for store in self.pg_to_bucket_store.values():
                get_accelerator().current_stream().wait_stream(store.comm_stream)

    replace(LowLevelZeroOptimizer, "backward", backward)


def _mend_unheard_messages() -> None:
    """Upstream `DistributedLogger.debug` looks up the file and line of every frame above it before it knows whether
    anybody listens, and Gemini calls it in every backward pass: tens of milliseconds of the host's."""
    from colossalai.logging import DistributedLogger

    upstream = DistributedLogger.debug

    @functools.wraps(upstream)
    def debug(self: DistributedLogger, message: str, ranks: list[int] | None = None) -> None:
        if self._logger.isEnabledFor(logging.DEBUG):
            upstream(self, message, ranks)

    replace(DistributedLogger, "debug", debug)


def _silence_engine_noise() -> None:
    """Keep the engine's internals off the user's terminal; no warning about the user's own run is touched."""
    from colossalai.zero.gemini.memory_tracer import memstats_collector

    # `Chunk` resizes storages through the deprecated Tensor.storage(); torch warns once a process.
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
    # `HybridParallelModule` passes DDP an argument that torch 2.13 renamed.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    # New names in torch 2.13 of collectives that the engine calls by the names torch 2.11 has.
    warnings.filterwarnings("ignore", message="`torch.distributed.(reduce_scatter_tensor|all_gather_into_tensor)`")
    # `pipeline.p2p` asks pytree for its leaves in a way that torch is about to drop.
    warnings.filterwarnings("ignore", message="`isinstance\\(treespec, LeafSpec\\)` is deprecated")
    # `HybridParallelPlugin.__init__` asks every zbv run for checkpointing without reentry, which all runs here have;
    # its logger puts the line's place in a record of its own.
    unasked = re.compile(r"must set the use_reentrant to False|hybrid_parallel_plugin\.py:\d+ __init__$")
    logging.getLogger("colossalai").addFilter(lambda record: not unasked.search(record.getMessage()))
    # `MemStatsCollector.finish_collection` prints a count on every rank; a `print` of the module's own shadows it.
    memstats_collector.print = lambda *args, **kwargs: None
