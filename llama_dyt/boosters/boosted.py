"""A boosted run: one object with the same few methods whatever strategy is behind it.

The trainer drives only this. The single place where pipeline and non-pipeline boosters differ is `forward_backward`.
"""

from __future__ import annotations

import llama_dyt.boosters.engine  # noqa: F401

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from colossalai.accelerator import get_accelerator
from colossalai.nn.optimizer import HybridAdam
from torch import nn

from llama_dyt.boosters.compilation import compiles
from llama_dyt.boosters.compiled import CompiledLayers
from llama_dyt.boosters.device_values import HostCopy
from llama_dyt.boosters.grid import Grid
from llama_dyt.boosters.layers.pipeline_stage import micro_batch_loss
from llama_dyt.boosters.layers.sequence_parallel import cut_batch
from llama_dyt.boosters.routing import follow_routing
from llama_dyt.boosters.runtime import Runtime
from llama_dyt.boosters.step import Criterion, Objective, StepBatch, StepResult
from llama_dyt.boosters.strategy import STRATEGIES
from llama_dyt.boosters.training_state import Read, TrainingState
from llama_dyt.config.run import RunConfig
from llama_dyt.core.standing import Phase, enter
from llama_dyt.models.spec import family_of


class Boosted:
    """Model and optimizer under the strategy that --plugin names.

    Attributes:
        runtime: what the strategy made of them; all below are its.
        model: the strategy's wrapper, callable.
        module: the HuggingFace module inside it (its parameters may be cut, freed or held by other stages).
        grid: this process's coordinates.
        objective: what is minimised in the stead of the model's own loss, without a pipeline; None: that.
        routing: what routers did in the last step; None where there are no experts.
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
        self.run = run
        self.objective: Objective | None = None
        self._before_change: list[Callable[[], None]] = []
        self._family = family_of(model.config)
        self._strategy = STRATEGIES.get(run.booster.plugin)
        model.loss_function = replace(model.loss_function, z_loss=run.loss.z_loss)
        self.device = get_accelerator().get_current_device()
        adam = run.optimizer
        betas = (adam.adam_beta1, adam.adam_beta2)
        optimizer = HybridAdam(parameter_groups, lr=adam.lr, betas=betas, eps=adam.adam_eps)
        self.runtime: Runtime = self._strategy.boost(run, model, optimizer, self._family)
        self.model = self.runtime.model
        self.module: nn.Module = self.runtime.module
        self.optimizer = self.runtime.optimizer
        self.grid: Grid = self.runtime.grid
        self.scaler = self.runtime.scaler
        self.state: TrainingState = self.runtime.state
        self.state.scatter(read)
        self.routing = follow_routing(run, self.module, self._family, self.grid)
        self._compiled = CompiledLayers(self.own_layers()) if compiles(run, self.device.type) else None
        self.model.train()

    def own_layers(self) -> list[nn.Module]:
        """The decoder layers of this rank; a pipeline leaves something empty of those of other stages."""
        layers = self._family.layers_of(self.module)
        return [layer for layer in layers if any(True for _ in layer.parameters())]

    # --- one step ------------------------------------------------------------------------------------------------

    def forward_backward(self, step: StepBatch) -> torch.Tensor:
        """Forward and backward over every micro batch of one optimizer step.

        Each micro batch's loss is its summed token loss over the label tokens of the *global* batch, so that every
        token weighs the same however tokens and padding fall on ranks and micro batches. The engine averages over
        the ranks that see other tokens, hence the factor `averaged_over`.

        Returns:
            This rank's share of the global batch's mean token loss: a detached scalar on the compute device, added up
            in fp64. `sum_over_ranks` of it is the loss.
        """
        if self.grid.pp_size > 1:
            return self._pipeline_forward_backward(step)
        self._weigh_auxiliary_losses(len(step.micro_batches))
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        last = len(step.micro_batches) - 1
        for index, micro_batch in enumerate(step.micro_batches):
            with self.runtime.accumulation(index == last):
                enter(Phase.FORWARD)
                loss = self._loss(micro_batch, step.num_label_tokens)
                enter(Phase.BACKWARD)
                self.runtime.backward(loss)
            total += loss.detach()
        return total / self._replicas

    def _loss(self, micro_batch: dict[str, torch.Tensor], num_label_tokens: int) -> torch.Tensor:
        inputs = self._own_slice(micro_batch)
        denominator = num_label_tokens / self.grid.averaged_over
        if self.objective is not None and self.model.training:
            return self.objective(self.model, inputs, denominator)
        return self.model(**inputs, use_cache=False, num_items_in_batch=denominator, skip_logits=True).loss

    @property
    def _replicas(self) -> int:
        """How many ranks report a share of the same loss, times the factor put in for the engine's averaging."""
        return self.grid.averaged_over * self.grid.tp_size

    def _pipeline_forward_backward(self, step: StepBatch) -> torch.Tensor:
        """All micro batches go through the pipeline as one schedule; the ranks that hold the head know the loss."""
        enter(Phase.PIPELINE)
        batch, criterion = self._pipeline_batch(step)
        self._weigh_auxiliary_losses(len(batch["input_ids"]) // self.run.booster.micro_batch_size)
        return self._share(self.runtime.pipeline_step(batch, criterion))

    def _weigh_auxiliary_losses(self, num_micro_batches: int) -> None:
        """Have a layer's own losses count as their mean over micro batches and slices; over ranks the engine averages.

        Their gradients join in where those of the cross entropy come by, which the loss scale is in already.
        """
        if self.routing is not None:
            self.routing.begin_step()
        if self._family.auxiliary_losses:
            slices = self.grid.tp_size if self.run.booster.sequence_parallelism == "split_gather" else 1
            for layer in self.own_layers():
                layer.auxiliary_weight = self.scaler.scale / (num_micro_batches * slices)

    def _pipeline_batch(self, step: StepBatch) -> tuple[dict[str, torch.Tensor], Criterion]:
        """What goes into the pipeline as one, and the loss of each micro batch that the schedule cuts from it."""
        micro_batches = step.micro_batches
        whole = {key: torch.cat([micro_batch[key] for micro_batch in micro_batches]) for key in micro_batches[0]}
        batch = self._own_slice(whole)
        num_micro_batches = len(batch["input_ids"]) // self.run.booster.micro_batch_size
        denominator = step.num_label_tokens / (self.grid.averaged_over * num_micro_batches)
        return batch, micro_batch_loss(self.module, self._family, denominator)

    def _share(self, loss: torch.Tensor | None) -> torch.Tensor:
        return (loss if loss is not None else torch.zeros((), device=self.device)) / self._replicas

    def _own_slice(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        window = self.module.config.sliding_window
        return cut_batch(self._to_device(batch), self.grid.sp_rank, self.grid.sp_size, window)

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
            share = self._share(self.runtime.pipeline_evaluation(*self._pipeline_batch(step)))
        else:
            losses = [self._loss(micro_batch, step.num_label_tokens) for micro_batch in step.micro_batches]
            share = torch.stack(losses).double().sum() / self._replicas
        self.runtime.after_evaluation()
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
        self.about_to_change()
        update = self.runtime.update
        if update is not None:
            update.loss, update.asked = loss, False
        self.optimizer.step()
        skipped = self.scaler.last_step_skipped
        if update is not None and not (skipped or update.asked):
            raise RuntimeError(f"{type(self.optimizer).__name__} stepped without asking `clipping.Update`")
        scale = self.scaler.last_scale if self.scaler.enabled else 1.0
        norm = None if skipped else self.optimizer.get_grad_norm() / scale
        self.optimizer.zero_grad()
        return StepResult(norm=norm, skipped=skipped, loss_scale=scale, counted=not skipped)

    def leave_out_step(self, norm: float | None = None) -> StepResult:
        """In the stead of `optimizer_step`, of a step that is no good: weights, moments, Adam's count of steps and the
        loss scale stay as they are. All ranks call it. `norm`: of the gradient, where it is known."""
        self.runtime.drop_gradients()
        return StepResult(norm=norm, skipped=False, loss_scale=self.scaler.scale, counted=False)

    def uncount_step(self) -> None:
        """Take back from Adam's count a step that `optimizer_step` left out, once the host has learned of it. Steps
        begun in between were done with the right count: the device keeps what the host did not know."""
        self.state.set_optimizer_steps(self.state.optimizer_steps() - 1)
        self.runtime.update.host_knows_of_one()

    @property
    def runs_ahead(self) -> bool:
        """Whether a step asks nothing of the host but to start it: then its outcome is best read a step later, while
        the device works. fp16 needs the host to tell what overflowed, offloaded states are the host's, and so is the
        order in which a pipeline sends."""
        return (
            self.device.type == "cuda"
            and self.runtime.update is not None
            and self._strategy.capability.offload == "none"
            and not self.scaler.enabled
            and self.grid.pp_size == 1
        )

    def before_change(self, wait: Callable[[], None]) -> None:
        """Have `wait` called once, before this rank's weights or moments change: a thread is reading them."""
        self._before_change.append(wait)

    def about_to_change(self) -> None:
        """Weights or moments change now: `optimizer_step` says so, and so does who changes them otherwise."""
        waiting, self._before_change = self._before_change, []
        for wait in waiting:
            wait()

    def sum_over_data_ranks(self, count: int) -> Callable[[], int]:
        """Begin to sum a whole number over the data-parallel ranks; collective over all ranks, exact.

        Returns:
            What waits for the sum, and for nothing that the device was asked for after this call.
        """
        total = torch.tensor([count], device=self.device)
        work = dist.all_reduce(total, async_op=True)
        copies = dist.get_world_size() // self.grid.dp_size
        if self.device.type == "cuda":
            work.wait()  # the stream waits, not the host
            copy = HostCopy(total)
            return lambda: int(copy.values()[0]) // copies

        def arrived() -> int:
            work.wait()
            return int(total) // copies

        return arrived

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
    """The same, left on the device: (len(values),) fp64."""
    packed = torch.stack(
        [
            value.to(device, torch.float64).reshape(())
            if isinstance(value, torch.Tensor)
            else torch.full((), value, dtype=torch.float64, device=device)  # a fill; a copy would wait
            for value in values
        ]
    )
    dist.all_reduce(packed)
    return packed


def gathered_from_ranks(values: Sequence[float], device: torch.device) -> list[list[float]]:
    """The values of every rank, in order; as many on each. One collective, and the host waits for it."""
    own = torch.tensor(values, dtype=torch.float64, device=device)
    found = own.new_empty(dist.get_world_size() * len(values))
    dist.all_gather_into_tensor(found, own)
    return found.view(-1, len(values)).tolist()


def peak_memory_mb() -> float:
    """Most memory this process has had on its compute device, in MB of 2**20 bytes; on a CPU, resident memory."""
    return get_accelerator().max_memory_allocated() / 2**20
