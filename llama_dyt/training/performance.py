"""How much work a token is, and how fast the run goes (what the device could do at best: `peak.py`).

Model FLOPs count what the mathematics needs; hardware FLOPs add what activation checkpointing recomputes. TFLOPS/GPU
and MFU are of model FLOPs throughout this project; Colossal-AI's published figures are of hardware FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from llama_dyt.models import recomputed_layers

from .peak import peak_tflops


def matmul_parameters(config: PretrainedConfig) -> int:
    """Weights that take part in a matrix multiplication: projections and head, not the embedding table or norms."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = config.hidden_size * head_dim * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    mlp = 3 * config.hidden_size * config.intermediate_size
    return config.num_hidden_layers * (attention + mlp) + config.hidden_size * config.vocab_size


def model_flops_per_token(config: PretrainedConfig, sequence_length: int) -> float:
    """Forward and backward FLOPs of one token.

    6 for each matmul weight plus 12·L·H·S for attention's two batched products, counted whole (not halved for the
    causal mask), as PaLM's appendix B and the published MFU figures do. LLaMA-2-7B at 4096: 46.08 GFLOP.
    """
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = head_dim * config.num_attention_heads
    return 6.0 * matmul_parameters(config) + 12.0 * config.num_hidden_layers * width * sequence_length


def hardware_flops_per_token(config: PretrainedConfig, sequence_length: int, recomputed_share: float) -> float:
    """FLOPs really executed: the forward of decoder layers that recompute their activations runs twice.

    Args:
        recomputed_share: share of the layers that is asked to, 0 to 1.
    """
    model_flops = model_flops_per_token(config, sequence_length)
    head = 6.0 * config.hidden_size * config.vocab_size  # the head is not recomputed
    layer_forward = (model_flops - head) / 3.0 / config.num_hidden_layers
    return model_flops + layer_forward * len(recomputed_layers(config.num_hidden_layers, recomputed_share))


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
    ) -> None:
        self.sequence_length = sequence_length
        self.num_devices = num_devices
        self.model_flops = model_flops_per_token(config, sequence_length)
        self.hardware_flops = hardware_flops_per_token(config, sequence_length, recomputed_share)
        self.peak_tflops, self.peak_source = peak_tflops(device, dtype)

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
