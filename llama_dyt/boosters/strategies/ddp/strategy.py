"""The entry of `ddp`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_dyt.boosters.capability import Capability
from llama_dyt.boosters.strategy import Strategy
from llama_dyt.config.run import RunConfig

if TYPE_CHECKING:
    from llama_dyt.boosters.runtime import Runtime


class DataParallel(Strategy):
    """torch's DistributedDataParallel, and fp32 masters in half precision: the hybrid plugin with nothing cut.

    Not Colossal-AI's TorchDDPPlugin: its optimizer knows no gradient norm (`TorchDDPPlugin` leaves
    `OptimizerWrapper.get_grad_norm`, which raises), and in half precision it keeps no fp32 masters.
    """

    def boost(self, run: RunConfig, model: Any, optimizer: Any, family: Any) -> Runtime:
        from llama_dyt.boosters.strategies.hybrid.runtime import boost

        return boost(run, model, optimizer, family, stage=0)


STRATEGY = DataParallel(
    "ddp", Capability(zero_stages=(0,), default_zero_stage=0, float32_zero_stages=(0,), expert_parallel=True), order=8
)
