"""Fully sharded data parallelism as a Colossal-AI plugin of our own, over torch's `fully_shard` (FSDP2).

Colossal-AI's `TorchFSDPPlugin` wraps the first FSDP, which flattens parameters of different kinds into one and whose
checkpoints are its own. Here every parameter is a DTensor cut along its first dimension, fp32 as the
optimizer sees it; layers are gathered in the working precision for as long as they compute.
"""

from __future__ import annotations

import llama_dyt.boosters.engine  # noqa: F401

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from colossalai.accelerator import get_accelerator
from colossalai.amp.naive_amp.mixed_precision_mixin import FP16MixedPrecisionMixin
from colossalai.booster.plugin.plugin_base import Plugin
from colossalai.checkpoint_io import CheckpointIO, GeneralCheckpointIO
from colossalai.interface import ModelWrapper, OptimizerWrapper
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import Shard
from torch.optim import Optimizer

from llama_dyt.boosters.clipping import Update, squared_norm
from llama_dyt.boosters.expert_parallel import ExpertGroups, spread_parameters
from llama_dyt.boosters.materialize import WORKING_DTYPES


class FsdpPlugin(Plugin):
    """Every rank holds 1/shards of parameters, gradients and optimizer states, all in fp32; what is frozen in the
    working precision.

    Args:
        layers: the model's decoder layers, each gathered and freed as one; the root gathers the rest.
        precision: "fp16", "bf16" or "fp32", of forward and backward; gradients are summed over ranks in fp32.
        initial_scale: first fp16 loss scale.
        max_norm: bound of the global gradient norm.
        shard_size: ranks that share one copy of the model; it divides the number of processes. Fewer than all makes
            hybrid sharding: neighbouring ranks share a copy, and gradients are summed over the copies too.
        cpu_offload: the shards and Adam stay in host memory; a layer's travel to the device when it computes.
        experts: spread ones are sharded over the ranks that have the same ones; None: none are spread.
    """

    def __init__(
        self,
        layers: list[nn.Module],
        precision: str,
        initial_scale: float,
        max_norm: float,
        shard_size: int,
        cpu_offload: bool = False,
        experts: ExpertGroups | None = None,
    ) -> None:
        self.layers = layers
        self.precision = precision
        self.initial_scale = initial_scale
        self.max_norm = max_norm
        self.cpu_offload = cpu_offload
        self.experts = experts
        self.device: torch.device = get_accelerator().get_current_device()
        self.mesh = _mesh(self.device.type, dist.get_world_size(), shard_size)

    @property
    def replicated(self) -> bool:
        """Whether there are several copies of the model (hybrid sharding)."""
        return self.mesh.ndim > 1

    def configure(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        criterion: Any = None,
        dataloader: Any = None,
        lr_scheduler: Any = None,
    ) -> tuple[nn.Module, OptimizerWrapper, Any, Any, Any]:
        """Shard `model`, from the meta device: it has memory for its shards then, but no values yet."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._shard(model)
        # `fully_shard` put other Parameter objects in the place of those the optimizer was made with.
        sharded = dict(model.named_parameters())
        for group in optimizer.param_groups:
            group["params"] = [sharded[names[id(parameter)]] for parameter in group["params"]]
        return ModelWrapper(model), FsdpOptimizer(optimizer, self), criterion, dataloader, lr_scheduler

    def _shard(self, model: nn.Module) -> None:
        options = {
            "mesh": self.mesh,
            # Inputs stay as they are, so cos and sin stay fp32; hidden states have the embedding's precision.
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=WORKING_DTYPES[self.precision], reduce_dtype=torch.float32, cast_forward_inputs=False
            ),
            "offload_policy": CPUOffloadPolicy(pin_memory=self.device.type == "cuda")
            if self.cpu_offload
            else OffloadPolicy(),
        }
        for parameter in model.parameters():
            if not parameter.requires_grad:  # nothing is added to it, so it needs no more digits than are worked with
                parameter.data = parameter.data.to(WORKING_DTYPES[self.precision])
        options["shard_placement_fn"] = _placement(self.mesh.size(-1))
        spread = {id(parameter) for _, parameter, _ in spread_parameters(model)}
        for layer in self.layers:
            for module in layer.modules():
                if spread & {id(parameter) for parameter in module.parameters(recurse=False)}:
                    mesh = self._mesh_of_copies()
                    fully_shard(module, **{**options, "mesh": mesh, "shard_placement_fn": _placement(mesh.size())})
            fully_shard(layer, **options)
        fully_shard(model, **options)
        if self.device.type == "cpu":
            for module in fsdp_modules(model):
                module.set_force_sum_reduction_for_comms(True)  # gloo cannot average: sum, then divide
        model.to_empty(device="cpu" if self.cpu_offload else self.device)

    def _mesh_of_copies(self) -> DeviceMesh:
        return DeviceMesh.from_group(self.experts.copies, self.device.type, mesh_dim_names=("shard",))

    @contextmanager
    def no_sync(self, model: nn.Module, optimizer: OptimizerWrapper) -> Iterator[None]:
        """Keep a micro batch's gradients from the other copies of the model, until a backward outside of this.

        Each rank adds up its fp32 shard of them; only the sum over the copies waits, the one that crosses machines.
        Within a copy every micro batch is summed: held back, whole gradients would stand on every rank.
        """
        root: FSDPModule = model.unwrap()
        root.set_requires_all_reduce(False)
        try:
            yield
        finally:
            root.set_requires_all_reduce(True)

    def support_no_sync(self) -> bool:
        return self.replicated

    def supported_devices(self) -> list[str]:
        return ["cuda", "cpu"]

    def supported_precisions(self) -> list[str]:
        return list(WORKING_DTYPES)

    def control_precision(self) -> bool:
        return True

    def control_device(self) -> bool:
        return True

    def control_checkpoint_io(self) -> bool:
        return True

    def get_checkpoint_io(self) -> CheckpointIO:
        return GeneralCheckpointIO()  # never called: checkpoints go through `FsdpState`

    def support_lora(self) -> bool:
        return False

    def enable_lora(self, model: nn.Module, pretrained_dir: str, lora_config: dict) -> nn.Module:
        raise NotImplementedError("adapters are llama_dyt.models.adapters', which need nothing of a plugin")

    def prepare_dataloader(self, dataset: Any, batch_size: int, **kwargs: Any) -> Any:
        raise NotImplementedError("batches come from llama_dyt.data, which knows its data-parallel rank")


class FsdpOptimizer(OptimizerWrapper):
    """Steps an Adam on this rank's shards: skips on overflow, clips by the norm of the whole gradient.

    Attributes:
        update: what it does with the gradient.
        mixed_precision_mixin: the fp16 loss scaler; None otherwise.
    """

    def __init__(self, optim: Optimizer, plugin: FsdpPlugin) -> None:
        super().__init__(optim)
        self.update = Update(plugin.max_norm)
        self._shard_group = shard_group(plugin.mesh)
        self._grad_norm: torch.Tensor | None = None
        self.mixed_precision_mixin = _ShardScaler(self, plugin.initial_scale) if plugin.precision == "fp16" else None

    def backward(self, loss: torch.Tensor, inputs: Any = None, retain_graph: bool = False, **kwargs: Any) -> None:
        if self.mixed_precision_mixin is not None:
            loss = self.mixed_precision_mixin.pre_backward(loss)
        loss.backward(inputs=inputs, retain_graph=retain_graph, **kwargs)

    def local_gradients(self) -> list[torch.Tensor]:
        """This rank's part of every gradient there is, fp32."""
        return [
            parameter.grad.to_local()
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]

    def step(self, closure: Any = None) -> None:
        """One optimizer step, or none where an fp16 gradient overflowed on any rank.

        Where the gradient is not finite no weight changes, which the device sees to: outside of fp16 the host waits for
        nothing here. It learns of it from the norm.
        """
        scale = 1.0
        if self.mixed_precision_mixin is not None:
            if self.mixed_precision_mixin.should_skip_step():
                self._grad_norm = None
                return
            scale = self.mixed_precision_mixin.get_grad_div_scale()
        parts = [(gradient, 1.0) for gradient in self.local_gradients()]
        self._grad_norm = squared_norm(parts, [self._shard_group]).sqrt()
        self.optim.step(**self.update.factors(self._grad_norm, scale))

    def get_grad_norm(self, norm_type: float = 2.0, **kwargs: Any) -> torch.Tensor | None:
        """Norm of the last step's gradient before clipping, loss scale included; None when the step was skipped."""
        return self._grad_norm


class _ShardScaler(FP16MixedPrecisionMixin):
    """The engine's dynamic loss scaler, looking for overflow in the shards; it agrees over all ranks itself."""

    def __init__(self, optimizer: FsdpOptimizer, initial_scale: float) -> None:
        super().__init__(initial_scale=initial_scale)
        self._optimizer = optimizer

    def check_local_overflow(self) -> bool:
        finite = torch.stack([torch.isfinite(gradient).all() for gradient in self._optimizer.local_gradients()])
        return not finite.all()  # one wait for the device, not one a parameter


def _placement(ranks: int) -> Callable[[nn.Parameter], Shard | None]:
    """Where a parameter is cut: along its first dimension, but experts, of which there are few, where they cannot be
    dealt out evenly, along their second; else some ranks would hold much more than others."""

    def placement(parameter: nn.Parameter) -> Shard | None:
        few = parameter.dim() == 3 and parameter.shape[0] % ranks
        return Shard(1) if few and parameter.shape[1] % ranks == 0 else None

    return placement


def _mesh(device_type: str, world_size: int, shard_size: int) -> DeviceMesh:
    """Ranks as (copies, shards), or (shards,) where there is one copy. Neighbouring ranks share a copy."""
    if shard_size == world_size:
        return init_device_mesh(device_type, (world_size,), mesh_dim_names=("shard",))
    return init_device_mesh(device_type, (world_size // shard_size, shard_size), mesh_dim_names=("replicate", "shard"))


def shard_group(mesh: DeviceMesh) -> dist.ProcessGroup:
    """The ranks that share this rank's copy of the model."""
    return mesh.get_group("shard")


def fsdp_modules(model: nn.Module) -> list[FSDPModule]:
    """The modules that gather and free their parameters as one: the decoder layers, and the root with the rest."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
