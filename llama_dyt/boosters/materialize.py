"""Memory for parameters that were made on the meta device, once they have been cut to this rank's share.

Every strategy needs it at another moment: before ZeRO wraps a model, after tensor parallelism has
cut it, chunk by chunk under Gemini. No rank ever holds the whole model in fp32. Upstream's way, `LazyInitContext`,
recurses without end on LLaMA with today's torch and transformers.
"""

from __future__ import annotations

import torch
from torch import nn

WORKING_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
"""--mixed_precision → dtype of the weights that forward and backward work with; masters are fp32 always."""


def materialize(module: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> None:
    """Give every meta parameter of a module memory, without values, in place: optimizers keep what they hold.

    Args:
        device: where.
        dtype: of the memory; None keeps the parameter's own.
    """
    for parameter in module.parameters():
        materialize_parameter(parameter, device, dtype)


def materialize_parameter(parameter: nn.Parameter, device: torch.device, dtype: torch.dtype | None = None) -> None:
    """`materialize` for one parameter; one that has memory is left alone."""
    if not parameter.is_meta:
        return
    filled = nn.Parameter(torch.empty_like(parameter, device=device, dtype=dtype), parameter.requires_grad)
    filled.__dict__.update(parameter.__dict__)  # the engine's notes on how it was cut travel with the tensor
    torch.utils.swap_tensors(parameter, filled)
