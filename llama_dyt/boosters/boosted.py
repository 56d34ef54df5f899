"""A boosted run: one object with the same few methods whatever plugin is behind it.

The trainer drives only this. The single place where pipeline and non-pipeline boosters differ is `forward_backward`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from colossalai.accelerator import get_accelerator
from colossalai.booster import Booster
from colossalai.booster.plugin import LowLevelZeroPlugin
from colossalai.nn.optimizer import HybridAdam
from colossalai.zero import LowLevelZeroOptimizer
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers.modeling_layers import GradientCheckpointingLayer

from llama_dyt.config.capabilities import capability
from llama_dyt.config.run import RunConfig
from llama_dyt.config.speed import compiles
from llama_dyt.models.families import FAMILIES

from .clipping import update_of
from .compiled import CompiledLayers
from .forward_pipeline import Criterion, ForwardPipeline
from .grid import Grid, grid_of
from .interface import Read, StepBatch, StepResult, TrainingState
from .materialize import WORKING_DTYPES, materialize
from .pipeline import micro_batch_loss
from .plugins import build_plugin, max_norm
from .scaler import LossScaler
from .sequence import cut_batch
from .state import ShardedState


class Boosted:
    """Model and optimizer under a Colossal-AI plugin.

    Attributes:
        model: the engine's wrapper, callable.
        module: the HuggingFace module inside it (its parameters may be cut, freed or held by other stages).
        grid: this process's coordinates.
        scaler: the fp16 loss scaler.
        state: whole tensors by name, for checkpoints.
    """

    def __init__(self, run: RunConfig, model: nn.Module, parameter_groups: list[dict[str, Any]], read: Read) -> None:
        """Boost a model without its weights, then fill what this rank holds. The process group must exist (`launch`).

        Args:
            run: the resolved run.
            model: on the meta device (`models.empty_model`): no rank ever holds the whole of it in fp32.
            parameter_groups: of the model, as for a torch optimizer: dicts with "params" and "weight_decay".
            read: name → whole tensors to start from, "param" and, to resume, Adam's moments; the same on every rank.
        """
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self.run = run
        self._family = FAMILIES[model.config.model_type]
        self.plugin = build_plugin(run, self._family, num_parameters=sum(s.numel() for s in shapes.values()))
        model.loss_function = replace(model.loss_function, z_loss=run.loss.z_loss)
        self.grid: Grid = grid_of(self.plugin)
        self.device = get_accelerator().get_current_device()
        optimizer = HybridAdam(parameter_groups, lr=run.optimizer.lr, betas=(0.9, 0.95), eps=1e-8)
        self._booster = Booster(plugin=self.plugin)
        if isinstance(self.plugin, LowLevelZeroPlugin):  # the others cut the model first, and give memory to the parts
            materialize(model, self.device, WORKING_DTYPES[run.booster.mixed_precision])
        self.model, self.optimizer, *_ = self._booster.boost(model, optimizer)
        self.optimizer._verbose = self.optimizer.verbose = False  # a skipped step is told once, by the trainer
        self.module: nn.Module = self.model.unwrap()
        self._update = update_of(self.optimizer, max_norm(run))
        self.scaler = LossScaler(self.optimizer)
        self.state: TrainingState = self._make_state(shapes)
        self.state.scatter(read)
        self._compiled = CompiledLayers(self._own_layers()) if compiles(run, self.device.type) else None
        self._forward_pipeline: ForwardPipeline | None = None
        self.model.train()

    def _own_layers(self) -> list[nn.Module]:
        """The decoder layers of this rank; a pipeline leaves something else of those of other stages."""
        layers = getattr(getattr(self.module, self._family.decoder), self._family.layers)
        return [layer for layer in layers if isinstance(layer, GradientCheckpointingLayer)]

    def _make_state(self, shapes: dict[str, torch.Size]) -> TrainingState:
        if self.run.booster.plugin.startswith("gemini"):
            from .gemini import GeminiState

            return GeminiState(self.model, self.optimizer, self.grid, shapes, self.scaler)
        if capability(self.run.booster.plugin, self.device.type).fully_sharded:
            from .fsdp_state import FsdpState

            return FsdpState(self.module, self.optimizer, self.grid, self.scaler)
        return ShardedState(self.module, self.optimizer, self.grid, shapes, self.scaler)

    # --- one step ------------------------------------------------------------------------------------------------

    def forward_backward(self, step: StepBatch) -> torch.Tensor:
        """Forward and backward over every micro batch of one optimizer step.

        Each micro batch's loss is its summed token loss over the label tokens of the *global* batch, so that every
        token weighs the same however tokens and padding fall on ranks and micro batches. The engine averages over
        the ranks that see other tokens, hence the factor `averaged_over`.

        Returns:
            This rank's share of the global batch's mean token loss: a detached fp32 scalar on the compute device.
            `sum_over_ranks` of it is the loss.
        """
        if self.grid.pp_size > 1:
            return self._pipeline_forward_backward(step)
        total = torch.zeros((), device=self.device)
        last = len(step.micro_batches) - 1
        for index, micro_batch in enumerate(step.micro_batches):
            with self._gradient_sync(index == last):
                loss = self._loss(micro_batch, step.num_label_tokens)
                self._booster.backward(loss, self.optimizer)
            total += loss.detach()
        return total / self._replicas

    def _loss(self, micro_batch: dict[str, torch.Tensor], num_label_tokens: int) -> torch.Tensor:
        inputs = cut_batch(self._to_device(micro_batch), self.grid.sp_rank, self.grid.sp_size)
        denominator = num_label_tokens / self.grid.averaged_over
        return self.model(**inputs, use_cache=False, num_items_in_batch=denominator, skip_logits=True).loss

    @property
    def _replicas(self) -> int:
        """How many ranks report a share of the same loss, times the factor put in for the engine's averaging."""
        return self.grid.averaged_over * self.grid.tp_size

    def _gradient_sync(self, last: bool):
        """Hold back the gradient reduction until the last micro batch, where the plugin can."""
        partitioned = isinstance(self.optimizer, LowLevelZeroOptimizer) and self.optimizer._partition_grads
        if last or partitioned or not self.plugin.support_no_sync():
            return nullcontext()  # ZeRO-2 and Gemini reduce every micro batch and add up
        return self._booster.no_sync(self.model, self.optimizer)

    def _pipeline_forward_backward(self, step: StepBatch) -> torch.Tensor:
        """All micro batches go through the pipeline as one schedule; the ranks that hold the head know the loss."""
        batch, criterion = self._pipeline_batch(step)
        outputs = self._booster.execute_pipeline(iter([batch]), self.model, criterion, self.optimizer, return_loss=True)
        return self._share(outputs["loss"])

    def _pipeline_batch(self, step: StepBatch) -> tuple[dict[str, torch.Tensor], Criterion]:
        """What goes into the pipeline as one, and the loss of each micro batch that the schedule cuts from it."""
        batch = {
            key: torch.cat([micro_batch[key] for micro_batch in step.micro_batches]).to(self.device)
            for key in step.micro_batches[0]
        }
        batch = cut_batch(batch, self.grid.sp_rank, self.grid.sp_size)
        num_micro_batches = len(batch["input_ids"]) // self.run.booster.micro_batch_size
        denominator = step.num_label_tokens / (self.grid.averaged_over * num_micro_batches)
        return batch, micro_batch_loss(self.module, self._family, denominator)

    def _share(self, loss: torch.Tensor | None) -> torch.Tensor:
        return (loss if loss is not None else torch.zeros((), device=self.device)) / self._replicas

    def _to_device(self, micro_batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.device.type == "cuda":  # from pinned memory the host need not wait for the copy
            micro_batch = {key: tensor.pin_memory() for key, tensor in micro_batch.items()}
        return {key: tensor.to(self.device, non_blocking=True) for key, tensor in micro_batch.items()}

    def layers_as_written(self) -> AbstractContextManager[None]:
        """Inside it no decoder layer is compiled, so that hooks on what is in them are called."""
        return self._compiled.eager() if self._compiled is not None else nullcontext()

    # --- no step -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, step: StepBatch) -> torch.Tensor:
        """The loss of a global batch by the present weights, as `forward_backward` returns it, and nothing else.

        Between optimizer steps. Neither weights nor gradients nor random generators change, and the model is as it was
        before: in train mode, its parameters cut. Every rank has as many micro batches as the others, of the sizes of
        training.
        """
        self.model.eval()
        if self.grid.pp_size > 1:
            if self._forward_pipeline is None:
                self._forward_pipeline = ForwardPipeline(self.plugin, self.run.booster.micro_batch_size)
            batch, criterion = self._pipeline_batch(step)
            share = self._share(self._forward_pipeline.run(self.model, batch, criterion))
        else:
            losses = [self._loss(micro_batch, step.num_label_tokens) for micro_batch in step.micro_batches]
            share = torch.stack(losses).sum() / self._replicas
        if isinstance(self.module, FSDPModule):
            self.module.reshard()  # the root stays whole after a forward pass, for a backward that does not come here
        self.model.train()
        return share

    # --- the rest of a step --------------------------------------------------------------------------------------

    def optimizer_step(self, loss: torch.Tensor | None = None) -> StepResult:
        """Clip, update the weights, clear the gradients. The learning rate is set by `set_learning_rate` before.

        Where the gradient is not finite no weight changes.

        Args:
            loss: the global batch's, on the device, where the caller has not looked at it yet: unless it is finite, no
                weight changes either. Only a booster that `runs_ahead` may be asked this.

        Raises:
            NonFiniteGradientError: it is not, and Gemini's host knows. Of the others `StepResult.norm` tells.
        """
        if self._update is not None:
            self._update.loss = loss
        self.optimizer.step()
        skipped = self.scaler.last_step_skipped
        scale = self.scaler.last_scale if self.scaler.enabled else 1.0
        norm = None if skipped else self.optimizer.get_grad_norm() / scale
        self.optimizer.zero_grad()
        return StepResult(norm=norm, skipped=skipped, loss_scale=scale)

    @property
    def runs_ahead(self) -> bool:
        """Whether a step asks nothing of the host but to start it: then its outcome is best read a step later, while
        the device works. fp16 needs the host to tell what overflowed, offloaded states are the host's, and so is the
        order in which a pipeline sends."""
        return (
            self.device.type == "cuda"
            and self._update is not None
            and capability(self.run.booster.plugin, self.device.type).offload == "none"
            and not self.scaler.enabled
            and self.grid.pp_size == 1
        )

    def sum_over_data_ranks(self, count: int) -> int:
        """Sum of a whole number over the data-parallel ranks; collective over all ranks, exact."""
        total = torch.tensor(count, device=self.device)
        dist.all_reduce(total)
        return int(total) // (dist.get_world_size() // self.grid.dp_size)

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked of it; for timing."""
        get_accelerator().synchronize()

    def set_learning_rate(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr


def sum_over_ranks(values: Iterable[torch.Tensor | float], device: torch.device) -> list[float]:
    """Sum of each value over every rank of the run, in one collective; the same floats on all ranks."""
    return summed_over_ranks(values, device).tolist()


def summed_over_ranks(values: Iterable[torch.Tensor | float], device: torch.device) -> torch.Tensor:
    """The same, left on the device: (len(values),) fp32."""
    packed = torch.stack(
        [
            value.to(device, torch.float32).reshape(())
            if isinstance(value, torch.Tensor)
            else torch.full((), value, dtype=torch.float32, device=device)  # a fill; a copy would wait
            for value in values
        ]
    )
    dist.all_reduce(packed)
    return packed


def peak_memory_mb() -> float:
    """Most memory this process has had on its compute device, in MB of 2**20 bytes; on a CPU, resident memory."""
    return get_accelerator().max_memory_allocated() / 2**20
