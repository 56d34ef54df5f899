"""How much work a token is, and how fast the run goes (what the device could do at best: `peak.py`).

Model FLOPs count what the mathematics needs; hardware FLOPs add what activation checkpointing recomputes. TFLOPS/GPU
and MFU are of model FLOPs throughout this project; Colossal-AI's published figures are of hardware FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from llama_dyt.models import family_of, recomputed_layers
from llama_dyt.models.adapters import Adapter, count
from llama_dyt.training.measurement.figures import figure, percentage
from llama_dyt.training.measurement.peak import peak_tflops


def hardware_flops_per_token(config: PretrainedConfig, sequence_length: int, recomputed_share: float) -> float:
    """FLOPs really executed: the forward of decoder layers that recompute their activations runs twice.

    Args:
        recomputed_share: share of the layers that is asked to, 0 to 1.
    """
    family = family_of(config)
    recomputing = len(recomputed_layers(config.num_hidden_layers, recomputed_share))
    once_more = family.recomputed_flops_per_token(config, sequence_length) * recomputing
    return family.flops_per_token(config, sequence_length) + once_more


def frozen_flops_per_token(config: PretrainedConfig, adapter: Adapter) -> float:
    """FLOPs of one token that an adapter's run does without: the gradients of weights that are frozen, 2 for each, less
    the adapter's own 6 for each of its numbers."""
    counts = count(adapter, config)
    return 2.0 * family_of(config).matmul_parameters(config) - 6.0 * counts.added


@dataclass(frozen=True)
class Speed:
    """Rates of a stretch of steps, per device where named so."""

    tokens_per_second: float
    samples_per_second: float
    tokens_per_second_per_device: float
    tflops_per_device: float
    hardware_tflops_per_device: float
    mfu: float


class Speedometer:
    """Turns tokens and seconds into rates for one model on one kind of device."""

    def __init__(
        self,
        config: PretrainedConfig,
        sequence_length: int,
        recomputed_share: float,
        num_devices: int,
        device: torch.device,
        dtype: torch.dtype,
        processes_here: int = 1,
        adapter: Adapter | None = None,
    ) -> None:
        """
        Args:
            processes_here: of this run on this machine, which measure its peak at the same time.
            adapter: what is trained in place of the weights.
        """
        self.sequence_length = sequence_length
        self.num_devices = num_devices
        self.model_flops = family_of(config).flops_per_token(config, sequence_length)
        self.hardware_flops = hardware_flops_per_token(config, sequence_length, recomputed_share)
        if adapter is not None:
            spared = frozen_flops_per_token(config, adapter)
            self.model_flops, self.hardware_flops = self.model_flops - spared, self.hardware_flops - spared
        self.peak_tflops, self.peak_source = peak_tflops(device, dtype, processes_here)

    def speed(self, tokens: int, seconds: float) -> Speed:
        """Rates for `tokens` over all devices in `seconds` of wall time."""
        rate = tokens / max(seconds, 1e-9)
        per_device = rate / self.num_devices
        tflops = per_device * self.model_flops / 1e12
        return Speed(
            tokens_per_second=rate,
            samples_per_second=rate / self.sequence_length,
            tokens_per_second_per_device=per_device,
            tflops_per_device=tflops,
            hardware_tflops_per_device=per_device * self.hardware_flops / 1e12,
            mfu=tflops / self.peak_tflops,
        )

    def in_words(self, tokens: int, seconds: float) -> str:
        """The rates of a run in one line, and the peak that utilisation is a share of."""
        speed = self.speed(tokens, seconds)
        return (
            f"{speed.tokens_per_second:,.0f} tokens/s over all, {figure(speed.tflops_per_device)} TFLOPS a device, "
            f"{percentage(speed.mfu)} MFU (peak {figure(self.peak_tflops)} TFLOPS, {self.peak_source})"
        )
