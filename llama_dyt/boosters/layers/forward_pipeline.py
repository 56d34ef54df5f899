"""The pipeline's order of work for forward passes alone, for evaluating between steps of training.

The engine's schedules are not to be asked for it as they are. Each remembers the shapes that
stages exchange, and whether they carry gradients, and would go on with what an evaluation left there; zbv's forward
pass walks the wrong list; and `HybridParallelPlugin.execute_pipeline` ends with sums of gradients, of which there are
none. So an evaluation has a schedule of its own, made of the engine's parts, and calls that.
"""

from __future__ import annotations

import llama_dyt.boosters.engine  # noqa: F401

from typing import Any

import torch
from colossalai.booster.plugin import HybridParallelPlugin
from colossalai.pipeline.schedule import InterleavedSchedule, OneForwardOneBackwardSchedule, ZeroBubbleVPipeScheduler
from colossalai.pipeline.schedule.v_schedule import ScheduledNode
from torch import nn

from llama_dyt.boosters.step import Criterion

_FORWARD_NODES = {"RECV_FORWARD", "F", "SEND_FORWARD"}


class ForwardPipeline:
    """Sends batches forward through the stages, the micro batches of one optimizer step at a time.

    Args:
        plugin: of the run, with a pipeline.
        style: --pp_style.
        micro_batch_size: sequences in a micro batch.
    """

    def __init__(self, plugin: HybridParallelPlugin, style: str, micro_batch_size: int) -> None:
        self._schedule = _FORWARD_SCHEDULES[style](plugin, micro_batch_size)
        self._rows: int | None = None

    @torch.no_grad()
    def run(self, model: nn.Module, batch: dict[str, torch.Tensor], criterion: Criterion) -> torch.Tensor | None:
        """The sum of `criterion` over the micro batches of a batch, by their number; None where the head is not."""
        rows = len(batch["input_ids"])
        # Upstream forgets the shapes for good, and sends them again with each tensor, when the batch size changes.
        assert self._rows in (None, rows), "batches of one size"
        self._rows = self._schedule.last_batch_size = rows
        return self._schedule.forward_backward_step(model, iter([batch]), criterion, None, return_loss=True)["loss"]


def _one_run(plugin: HybridParallelPlugin, micro_batch_size: int) -> OneForwardOneBackwardSchedule:
    return OneForwardOneBackwardSchedule(plugin.stage_manager, microbatch_size=micro_batch_size)


def _interleaved(plugin: HybridParallelPlugin, micro_batch_size: int) -> InterleavedSchedule:
    return InterleavedSchedule(
        plugin.stage_manager,
        plugin.scheduler.num_model_chunks,
        microbatch_size=micro_batch_size,
        overlap_p2p=False,  # there is no backward pass to overlap with
    )


class ForwardV(ZeroBubbleVPipeScheduler):
    """The forward half of a zero-bubble pipeline.

    Upstream `ZeroBubbleVPipeScheduler.run_forward_only` expects the nodes of its own stage where it is given those of
    all, keeps inputs and outputs for a backward pass, and does not wait for what it sent.
    """

    def __init__(
        self, stage_manager: Any, schedule: list[ScheduledNode], num_model_chunks: int, **options: Any
    ) -> None:
        super().__init__(stage_manager, schedule, num_model_chunks, **options)
        send = self.communication_map["SEND_FORWARD"]
        self.communication_map["SEND_FORWARD"] = lambda chunk: self.wait_handles.append(send(chunk))

    def run_forward_only(self, *args: Any, **kwargs: Any) -> dict:
        result = super().run_forward_only(*args, **kwargs)
        for handles in self.wait_handles:
            for handle in handles:
                handle.wait()
        self._free_buffers()
        return result


def _in_a_v(plugin: HybridParallelPlugin, micro_batch_size: int) -> ForwardV:
    training, manager = plugin.scheduler, plugin.stage_manager
    nodes = [node for node in training.schedules[manager.stage] if node.type in _FORWARD_NODES]
    return ForwardV(manager, nodes, training.num_model_chunks, microbatch_size=micro_batch_size)


_FORWARD_SCHEDULES = {"1f1b": _one_run, "interleaved": _interleaved, "zbv": _in_a_v}
"""By --pp_style."""
