"""Dynamic Tanh on a CPU: calls dynamic_tanh.c.

The border to C: shapes, dtypes and addresses are settled here.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
from pathlib import Path

import torch
from torch import Tensor

from llama_dyt.norms.kernels.native import BuildError, load_library

SOURCE = Path(__file__).with_name("dynamic_tanh.c")
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""dtype of x → what the C file calls it."""
ROWS = 32
"""Rows a block; as in the C file."""
ELEMENTS_A_THREAD = 16384
"""Fewer are not worth waking a thread for."""

_INTEGERS = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The C file's functions; None where it cannot be built, after one notice that says why."""
    try:
        library = load_library(SOURCE)
    except BuildError as error:
        warnings.warn(f"Dynamic Tanh runs by PyTorch's own operations, several times slower: {error}", stacklevel=2)
        return None
    library.forward.argtypes, library.forward.restype = [*_INTEGERS, *[ctypes.c_void_p] * 5], None
    library.backward.argtypes, library.backward.restype = [*_INTEGERS, *[ctypes.c_void_p] * 10], None
    return library


def forward(x: Tensor, alpha: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """weight * tanh(alpha * x) [+ bias].

    Args:
        x: (..., hidden_size), a dtype of TYPES.
        alpha: one element; weight, bias: (hidden_size,).
    """
    x = x.contiguous()
    y = torch.empty_like(x)
    if x.numel():
        alpha, weight, bias = _plain(alpha, x), _plain(weight, x), None if bias is None else _plain(bias, x)
        library().forward(*_sizes(x), *map(_address, (x, alpha, weight, bias, y)))
    return y


def backward(grad: Tensor, x: Tensor, alpha: Tensor, weight: Tensor, with_bias: bool) -> list[Tensor]:
    """Gradients of x (its dtype), alpha (1,), weight and, if asked for, bias (hidden_size,), these in fp32."""
    grad, x = grad.contiguous(), x.contiguous()
    columns, blocks = x.shape[-1], -(-x.numel() // max(x.shape[-1], 1) // ROWS)
    x_grad = torch.empty_like(x)
    sums = [torch.zeros(1), torch.zeros(columns)] + ([torch.zeros(columns)] if with_bias else [])
    if x.numel():
        parts = torch.empty((1 + with_bias) * blocks * columns)
        alpha_parts = torch.empty(blocks, dtype=torch.float64)
        alpha, weight = _plain(alpha, x), _plain(weight, x)
        tensors = [grad, x, alpha, weight, parts, alpha_parts, x_grad, *sums, None][:10]
        library().backward(*_sizes(x), *map(_address, tensors))
    return [x_grad, *sums]


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    """Type, threads, rows, columns."""
    columns = x.shape[-1]
    rows = x.numel() // columns
    threads = min(torch.get_num_threads(), -(-rows // ROWS), -(-x.numel() // ELEMENTS_A_THREAD))
    return TYPES[x.dtype], threads, rows, columns


def _plain(parameter: Tensor, x: Tensor) -> Tensor:
    """Contiguous and in fp32; for bf16, every nan in it the usual one, whose bits the C file can round."""
    parameter = parameter.float().contiguous()
    if x.dtype == torch.bfloat16:
        parameter = torch.nan_to_num(parameter, nan=torch.nan, posinf=torch.inf, neginf=-torch.inf)
    return parameter


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
