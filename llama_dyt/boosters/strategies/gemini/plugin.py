"""Gemini, Colossal-AI's chunk-based ZeRO-3 with offloading: plugins `gemini` (fixed shares) and `gemini_auto`.

Gemini takes neither a policy nor a whole fp32 model as the other plugins do, and three faults of its wrappers are
mended here, where they are made. What must be mended in the engine itself is in `compat.py`.
"""

from __future__ import annotations

from llama_dyt.boosters.engine.scaler import INITIAL_SCALE

import math
import socket
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
import torch.distributed as dist
from colossalai.accelerator import get_accelerator
from colossalai.booster.plugin import GeminiPlugin
from colossalai.booster.plugin.gemini_plugin import get_param_info
from colossalai.shardformer import ShardFormer
from colossalai.tensor.colo_tensor import INPALCE_MAPPING
from colossalai.tensor.param_op_hook import ColoParamOpHook
from colossalai.zero import GeminiDDP, GeminiOptimizer
from colossalai.zero.gemini.chunk import Chunk
from torch import nn

from llama_dyt.boosters.layers.policy import DecoderPolicy
from llama_dyt.boosters.materialize import WORKING_DTYPES, materialize_parameter
from llama_dyt.boosters.squares import sum_of_squares
from llama_dyt.boosters.step import NonFiniteGradientError
from llama_dyt.boosters.strategies.gemini.state import part_of_payload
from llama_dyt.boosters.tensor_parts import cut_dimension
from llama_dyt.config.run import RunConfig
from llama_dyt.core import ranks
from llama_dyt.core.errors import TrainingError
from llama_dyt.models.spec import ModelSpec

_MEGA = 2**20
_LARGEST_CHUNK = 32 * _MEGA
"""The engine's own smallest chunk (`min_chunk_size_m=32`), good for the bandwidth of a large model's collectives."""
_CHUNKS_A_MODEL = 16
_SEARCH_STEPS = 32


def chunk_elements(num_parameters: int) -> int:
    """Smallest chunk size, in elements, for a model of so many parameters.

    The engine keeps any model under 32M parameters whole on every rank, in one chunk that is never sharded. Here even a
    small one is cut into about 16 chunks, so that Gemini means ZeRO-3 at every size.
    """
    return max(1, min(_LARGEST_CHUNK, num_parameters // _CHUNKS_A_MODEL))


def build_gemini(
    run: RunConfig, family: ModelSpec, num_parameters: int, max_norm: float, automatic: bool
) -> ChunkedPlugin:
    """The plugin for a run's settings; the process group must exist.

    Args:
        family: of the model; says how tensor parallelism cuts it.
        num_parameters: of the whole model; sizes the chunks.
        max_norm: clipping bound; pass a huge one for none, since Gemini computes the grad norm only under a bound.
        automatic: the engine plans what leaves the device (`gemini_auto`).
    """
    settings = run.booster
    on_gpu = get_accelerator().name == "cuda"
    if automatic:
        _plan_device_memory(settings.memory_limit * _MEGA if settings.memory_limit else None)
    smallest = chunk_elements(num_parameters // settings.tp)
    replicas = settings.data_parallel_size(dist.get_world_size())
    # The policy leaves what it has cut without memory, which the parameters get as they go into chunks.
    policy = DecoderPolicy(family, WORKING_DTYPES[settings.mixed_precision], torch.device("meta"))
    return ChunkedPlugin(
        policy,
        placement_policy="auto" if automatic else "static",
        precision=settings.mixed_precision,
        enable_gradient_accumulation=run.optimizer.gradient_accumulation_steps > 1,
        shard_param_frac=1.0 if settings.shard_param_frac is None else settings.shard_param_frac,
        offload_optim_frac=settings.offload_optim_frac or 0.0,
        # Only with the two above at 1, which `config.check` saw to.
        offload_param_frac=settings.offload_param_frac or 0.0,
        warmup_non_model_data_ratio=settings.warmup_ratio,
        min_chunk_size_m=smallest / _MEGA,
        search_range_m=smallest / _MEGA,
        hidden_dim=max(1, smallest // _SEARCH_STEPS),  # upstream's name for the step of the search
        max_norm=max_norm,
        tp_size=settings.tp,
        extra_dp_size=settings.extra_dp,
        # Chunks are summed over the replicas in half precision before they are divided: a replica's share of the range.
        initial_scale=INITIAL_SCALE / 2 ** math.ceil(math.log2(replicas)),
        # Both need CUDA: asynchronous reduction brings its results to pinned memory.
        enable_async_reduce=on_gpu,
        pin_memory=on_gpu,
    )


def _plan_device_memory(limit_bytes: int | None) -> None:
    """Tell automatic placement how much device memory this process has: all of its GPU, or its share of the machine.

    Args:
        limit_bytes: a bound of the user's; on a GPU torch enforces it too.
    """
    # `AutoPlacementPolicy.evict_tensors` takes its capacity from the engine's legacy part.
    from colossalai.legacy.core import global_context
    from colossalai.legacy.utils import memory

    if get_accelerator().name == "cuda":
        if limit_bytes is not None:
            total = torch.cuda.get_device_properties(get_accelerator().get_current_device()).total_memory
            memory.colo_set_process_memory_fraction(min(1.0, limit_bytes / total))
        return
    # Left at -1 by everything but the legacy launcher, which makes the capacity negative.
    hosts = ranks.gather(socket.gethostname(), "counting the processes of a machine")
    global_context.num_processes_on_current_node = hosts.count(socket.gethostname())
    if limit_bytes is None:
        limit_bytes = psutil.virtual_memory().total
    else:
        limit_bytes *= global_context.num_processes_on_current_node
    memory.colo_set_cpu_memory_capacity(limit_bytes)


class AliasGuard(ColoParamOpHook):
    """Copies what an operation returns when that is the parameter's own memory, as `.to()` and views can return it.

    Gemini frees a chunk once the operation that named its parameter is over, and fetches it again for that operation's
    backward. An alias outlives both, so a later operation on it reads freed memory: in backward, a segmentation fault.
    """

    def __init__(self) -> None:
        self._params: list[torch.Tensor] = []

    def pre_forward(self, params: list[torch.Tensor]) -> None:
        self._params = params

    def post_forward(self, params: list[torch.Tensor]) -> None: ...

    def pre_backward(self, params: list[torch.Tensor]) -> None: ...

    def post_backward(self, params: list[torch.Tensor]) -> None: ...

    def rewrite_op(self, func: Callable) -> Callable:
        if func in INPALCE_MAPPING:  # upstream swaps these for their copying forms, by identity
            return func
        owned = {param.untyped_storage().data_ptr() for param in self._params}

        def guarded(*args: Any, **kwargs: Any) -> Any:
            result = func(*args, **kwargs)
            if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() in owned:
                return result.clone()
            return result

        return guarded


class ChunkedModel(GeminiDDP):
    """GeminiDDP with the guard above, of a model on the meta device."""

    def __init__(self, module: nn.Module, **kwargs: Any) -> None:
        super().__init__(module, **kwargs)
        self.hooks.append(AliasGuard())

    def _init_chunks(self, **kwargs: Any) -> None:
        super()._init_chunks(**kwargs)
        for parameter in self.fp16_params:  # before upstream's own hooks, which take the gradients
            if cut_dimension(parameter) is not None:
                # Weakly: autograd's hooks are hidden from the garbage collector, and would keep the model for good.
                model, held = weakref.ref(self), weakref.ref(parameter)
                parameter.register_hook(lambda _, model=model, held=held: model()._fetch_for_gradient(held()))

    def _fetch_for_gradient(self, parameter: nn.Parameter) -> None:
        """Bring a parameter's chunk before its gradient is put there.

        Tensor-parallel layers are autograd functions of their own, around which no hook of Gemini's stands in backward:
        it relies on an operation of theirs that names the parameter. Under activation checkpointing they are given a
        copy, which has no name, and the gradient would find the chunk freed.
        """
        with torch._C.DisableTorchFunction():
            self.param_op_hook.pre_backward([parameter])
            self.param_op_hook.post_backward([parameter])

    def _preprocess_param(self, p: nn.Parameter) -> None:
        """Upstream calls this as it puts one parameter after the other into chunks, and gives memory to those of its
        own lazy kind. A chunk keeps its shard alone once it is full, so no rank ever holds the whole model."""
        materialize_parameter(p, get_accelerator().get_current_device(), self.mixed_precision)
        super()._preprocess_param(p)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        manager = self.gemini_manager
        with _memory_shortage_explained():
            if not torch.is_grad_enabled() and manager.need_warmup and manager.is_warmup():
                return self._forward_before_training(*args, **kwargs)
            return super().forward(*args, **kwargs)

    def _forward_before_training(self, *args: Any, **kwargs: Any) -> Any:
        """Automatic placement learns its plan from the first training step, and upstream refuses to evaluate before it.
        Without a plan the whole model comes to the device."""
        for chunk in self.chunk_manager.get_chunks(self.fp16_params):
            self.chunk_manager.access_chunk(chunk)
        outputs = self.module(*args, **kwargs)
        self._post_forward()
        return outputs

    def backward(self, loss: torch.Tensor) -> None:
        with _memory_shortage_explained():
            super().backward(loss)


@contextmanager
def _memory_shortage_explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "Adjust layout failed" not in str(error):  # upstream `AutoPlacementPolicy.evict_tensors`
            raise
        raise TrainingError(
            f"gemini_auto cannot place the model in the memory it was given ({error}): raise --memory_limit, or lower "
            "--warmup_ratio, the share set aside for activations in the first step"
        ) from error


class ChunkedOptimizer(GeminiOptimizer):
    """GeminiOptimizer that recovers from an overflow while accumulating, and whose grad norm is the whole model's and
    finite."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Upstream keeps a set ordered by address, so the norm's last bits, and with them the clipping factor, differ
        # from rank to rank and from run to run.
        self.chunk16_set = self.chunk_manager.get_chunks(self.module.fp16_params)

    def _calc_global_norm(self) -> float:
        """The norm of the whole model's gradient, from the squares that each chunk left as it was reduced.

        Upstream adds them up over the ZeRO group alone and in fp32, so under tensor parallelism every rank would clip
        by the norm of what it holds itself; over the tensor-parallel group, what all its ranks hold alike counts once.

        Raises:
            NonFiniteGradientError: before any weight has changed. A norm of nan is not above the clipping bound, so
                upstream would go on. In fp16 what overflowed was skipped by then.
        """
        by_group: dict[dist.ProcessGroup | None, float] = {None: 0.0}
        for chunk in self.chunk16_set:
            gradients = chunk if self.chunk_manager.reuse_fp16_chunk else chunk.grad_chunk
            group = None if gradients.is_gathered else gradients.torch_pg
            by_group[group] = by_group.get(group, 0.0) + gradients.l2_norm - self._counted_elsewhere(chunk, gradients)
            gradients.l2_norm = None
        total = torch.zeros((), dtype=torch.float64, device=get_accelerator().get_current_device())
        for group, square in by_group.items():
            part = torch.full_like(total, square)
            if group is not None:
                dist.all_reduce(part, group=group)
            total += part
        if self.tp_group is not None:
            dist.all_reduce(total, group=self.tp_group)
        # A finite sum may be rounded below nothing. Not by `max`, which would make nothing of nan as well.
        norm = math.sqrt(0.0 if total < 0 else total)
        if not math.isfinite(norm):
            raise NonFiniteGradientError(norm)
        return norm

    def _counted_elsewhere(self, chunk: Chunk, gradients: Chunk) -> float:
        """How much of a chunk's square is of parameters that another tensor-parallel rank has as well and counts."""
        if self.tp_rank == 0:
            return 0.0
        alike = [parameter for parameter in chunk.get_tensors() if cut_dimension(parameter) is None]
        parts = [part_of_payload(chunk, parameter, payload_of=gradients) for parameter in alike]
        return float(sum_of_squares(parts)) if parts else 0.0

    def drop_gradients(self) -> None:
        """Leave out a step, as upstream's `step` does where fp16 overflowed: without accumulation gradients stand in
        the place of the working weights, which have to be made anew from the masters."""
        self._clear_global_norm()
        self.zero_grad()
        self._update_fp16_params()
        self.chunk_manager.accumulating_grads = False

    def step(self, *args: Any, **kwargs: Any) -> Any:
        result = super().step(*args, **kwargs)
        # Upstream returns before this line when fp16 overflowed: the next step then adds to the infinite gradients of
        # the skipped one, and every step after it is skipped as well.
        self.chunk_manager.accumulating_grads = False
        return result


class ChunkedPlugin(GeminiPlugin):
    """GeminiPlugin with the two wrappers above, and with our policy where tensor parallelism cuts the model: upstream
    looks one up by the model's class, and takes none."""

    def __init__(self, policy: DecoderPolicy, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.policy = policy

    def configure(self, model, optimizer=None, criterion=None, dataloader=None, lr_scheduler=None):
        params_info = get_param_info(optimizer)
        if self.enable_tensor_parallelism:
            model, _ = ShardFormer(self.shard_config).optimize(model, self.policy)
        model = ChunkedModel(
            model,
            **self.gemini_config,
            zero_group=self.zero_group,
            extra_dp_group=self.extra_dp_group,
            verbose=self.verbose,
        )
        if optimizer is not None:
            optimizer = ChunkedOptimizer(
                optimizer,
                model,
                **self.zero_optim_config,
                **self.optim_kwargs,
                tp_group=self.tp_group,
                params_info=params_info,
                verbose=self.verbose,
            )
        return model, optimizer, criterion, dataloader, lr_scheduler

    def supported_devices(self) -> list[str]:
        return [*super().supported_devices(), "cpu"]
