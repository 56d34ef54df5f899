"""Writing the fp32 tensors of a checkpoint that are all there at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from llama_dyt.models.tensor_writer import write_tensors


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> str:
    """Write a file of safetensors, to the disk.

    Args:
        tensors: fp32, on the host.

    Returns:
        The file's SHA-256.
    """
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32 and tensor.device.type == "cpu", f"{name}: {tensor.dtype} {tensor.device}"
    return write_tensors(
        {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}, tensors.__getitem__, path
    )
