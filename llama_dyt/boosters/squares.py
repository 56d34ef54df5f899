"""Sums of the squares of long tensors, exact to seven digits on any device.

torch's norm kernels on a CPU add one square after the other in fp32: at 45 million elements a third of a percent is
lost, at 263 million four, and how much depends on how a plugin cuts its tensors. Here no sum is longer than rounding
allows before it goes on in fp64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_ROW = 1024
"""Squares that torch's norm kernel may add up by itself on a CPU: as fast as any other number, and off by 1e-8."""
_PIECE = 2**20
"""Elements of half precision that are widened at a time: they stay in the cache."""


def sum_of_squares(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of the squares of all elements of tensors of one device, an fp64 scalar there."""
    device = tensors[0].device
    if device.type != "cpu":  # CUDA's kernel adds up blocks of 65,536
        return _square(torch._foreach_norm(tensors, 2, dtype=torch.float32))
    short = [tensor for tensor in tensors if tensor.numel() <= _ROW]
    total = torch.zeros((), dtype=torch.float64)
    if short:
        total += _square(torch._foreach_norm(short, 2, dtype=torch.float32))
    for tensor in tensors:
        if tensor.numel() > _ROW:
            total += _of_rows(tensor) if tensor.dtype == torch.float32 else _widened(tensor)
    return total


def _square(norms: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(tuple(norms)).double().square().sum()


def _of_rows(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.reshape(-1)
    whole = flat.numel() // _ROW * _ROW
    norms = torch.linalg.vector_norm(flat[:whole].view(-1, _ROW), dim=1)
    rest = torch.linalg.vector_norm(flat[whole:])
    return norms.double().square().sum() + rest.double().square()


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    """In half precision the norm kernel is slow, and squares of so few bits round one way; torch's sum, which adds in
    pairs, is neither."""
    flat = tensor.reshape(-1)
    buffer = torch.empty(min(_PIECE, flat.numel()), dtype=torch.float32)
    sums = [buffer[: len(piece)].copy_(piece).square_().sum() for piece in flat.split(_PIECE)]
    return torch.stack(sums).double().sum()
