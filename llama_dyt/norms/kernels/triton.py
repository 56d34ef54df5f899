"""Dynamic Tanh on a GPU: Triton kernels, forward and backward, each one pass over memory.

Triton is imported with this file, only when a tensor on a GPU comes. Every program walks down many rows of one block of
columns: the weight is read once, and what the rows add to the gradients of weight, bias and alpha stays in registers in
fp32 until the walk ends. Then it is written, one row of sums a program, and a second small kernel adds these in a fixed
order: no atomics, so the same result every time. Under TRITON_INTERPRET=1 all of it runs on a CPU.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096
"""Elements a program holds at a time: enough bytes under way to keep the memory busy, few enough for the registers."""
WIDEST = 1024
"""Columns of a tile; a wider row is walked by several programs."""
PROGRAMS_A_PROCESSOR = {"forward": 8, "backward": 4}
"""Programs started on a multiprocessor: more even out the end, fewer mean fewer sums to write."""
WARPS = 8
SUM_ROWS, SUM_COLUMNS = 64, 64


@triton.jit
def _tanh(u):
    # dynamic_tanh.c has the same, and says where it is from. A comparison with nan is false: nan stays.
    z = u * u
    z = tl.where(z < 81.0, z, 81.0)
    above = (((1.52303582445e-8 * z + 2.18946194436e-5) * z + 0.0035715954476) * z + 0.134444958093) * z + 1.0
    below = (((8.52242242455e-7 * z + 3.41128780102e-4) * z + 0.0261644331322) * z + 0.467778231281) * z + 1.0
    t = u * above / below
    t = tl.where(t > 1.0, 1.0, t)
    return tl.where(t < -1.0, -1.0, t)


@triton.jit
def _forward_kernel(
    x_ptr, alpha_ptr, weight_ptr, bias_ptr, y_ptr, rows, columns, tiles,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    alpha = tl.load(alpha_ptr).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    first = tl.program_id(0).to(tl.int64) * tiles * ROWS
    for tile in range(tiles):
        row = first + tile * ROWS + tl.arange(0, ROWS)
        at = row[:, None] * columns + column[None, :]
        mask = (row < rows)[:, None] & inside[None, :]
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        y = weight[None, :] * _tanh(alpha * x)
        if HAS_BIAS:
            y += bias[None, :]
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    grad_ptr, x_ptr, alpha_ptr, weight_ptr, x_grad_ptr, weight_parts_ptr, bias_parts_ptr, alpha_parts_ptr,
    rows, columns, tiles, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    alpha = tl.load(alpha_ptr).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    weight_sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    alpha_sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    bias_sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile in range(tiles):
        row = (program * tiles + tile) * ROWS + tl.arange(0, ROWS)
        at = row[:, None] * columns + column[None, :]
        mask = (row < rows)[:, None] & inside[None, :]
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
        t = _tanh(alpha * x)
        slope = grad * weight[None, :] * (1.0 - t * t)
        weight_sum += grad * t
        alpha_sum += slope * x
        if HAS_BIAS:
            bias_sum += grad
        tl.store(x_grad_ptr + at, (slope * alpha).to(x_grad_ptr.dtype.element_ty), mask=mask)
    tl.store(weight_parts_ptr + program * columns + column, tl.sum(weight_sum, axis=0), mask=inside)
    if HAS_BIAS:
        tl.store(bias_parts_ptr + program * columns + column, tl.sum(bias_sum, axis=0), mask=inside)
    part = program * tl.num_programs(1) + tl.program_id(1)
    tl.store(alpha_parts_ptr + part, tl.sum(tl.sum(alpha_sum, axis=0), axis=0))


@triton.jit
def _sum_kernel(parts_ptr, sums_ptr, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums over the rows of (rows, columns), always in the same order."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & inside[None, :]
        total += tl.load(parts_ptr + row[:, None] * columns + column[None, :], mask=mask, other=0.0)
    tl.store(sums_ptr + column, tl.sum(total, axis=0), mask=inside)


def forward(x: Tensor, alpha: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """weight * tanh(alpha * x) [+ bias].

    Args:
        x: (..., hidden_size), fp32, bf16 or fp16; made contiguous if it is not.
        alpha: one element; weight, bias: (hidden_size,).
    """
    x = x.contiguous()
    y = torch.empty_like(x)
    if x.numel():
        rows, columns, tile, grid, tiles = _plan(x, "forward")
        weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
        with _device_of(x):
            _forward_kernel[grid](
                x, alpha, weight, weight if bias is None else bias, y, rows, columns, tiles,
                HAS_BIAS=bias is not None, ROWS=tile[0], COLUMNS=tile[1], num_warps=WARPS,
            )  # fmt: skip
    return y


def backward(grad: Tensor, x: Tensor, alpha: Tensor, weight: Tensor, with_bias: bool) -> list[Tensor]:
    """Gradients of x (its dtype), alpha (1,), weight and, if asked for, bias (hidden_size,), these in fp32."""
    grad, x, weight = grad.contiguous(), x.contiguous(), weight.contiguous()
    x_grad = torch.empty_like(x)
    if not x.numel():
        sums = [x.new_zeros(size, dtype=torch.float32) for size in (1, *[x.shape[-1]] * (1 + with_bias))]
        return [x_grad, *sums]
    rows, columns, tile, grid, tiles = _plan(x, "backward")
    shapes = [(grid[0] * grid[1], 1), *[(grid[0], columns)] * (1 + with_bias)]
    alpha_parts, weight_parts, *rest = parts = [x.new_empty(shape, dtype=torch.float32) for shape in shapes]
    with _device_of(x):
        _backward_kernel[grid](
            grad, x, alpha, weight, x_grad, weight_parts, rest[0] if rest else weight_parts, alpha_parts,
            rows, columns, tiles, HAS_BIAS=with_bias, ROWS=tile[0], COLUMNS=tile[1], num_warps=WARPS,
        )  # fmt: skip
        return [x_grad, *map(_sum, parts)]


def _sum(parts: Tensor) -> Tensor:
    rows, columns = parts.shape
    sums = parts.new_empty(columns)
    width = min(SUM_COLUMNS, triton.next_power_of_2(columns))
    _sum_kernel[(triton.cdiv(columns, width),)](parts, sums, rows, columns, ROWS=SUM_ROWS, COLUMNS=width, num_warps=4)
    return sums


def _plan(x: Tensor, direction: str) -> tuple[int, int, tuple[int, int], tuple[int, int], int]:
    """How x is divided: rows, columns, a tile's (rows, columns), the grid of programs, and tiles that each walks."""
    columns = x.shape[-1]
    rows = x.numel() // columns
    width = min(WIDEST, triton.next_power_of_2(columns))
    height = min(TILE // width, triton.next_power_of_2(rows))
    across, down = triton.cdiv(columns, width), triton.cdiv(rows, height)
    wanted = max(1, PROGRAMS_A_PROCESSOR[direction] * _processors(x.device) // across)
    tiles = triton.cdiv(down, wanted)
    return rows, columns, (height, width), (triton.cdiv(down, tiles), across), tiles


@functools.cache
def _processors(device: torch.device) -> int:
    """Multiprocessors of the GPU; few under the interpreter, so that a program there walks over several tiles too."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _device_of(x: Tensor) -> torch.cuda.device:
    """Triton starts kernels on the current device, which need not be x's; on a CPU this does nothing."""
    return torch.cuda.device(x.device if x.device.type == "cuda" else -1)
