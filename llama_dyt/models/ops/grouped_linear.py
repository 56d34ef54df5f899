"""One linear map for each group of consecutive rows: what experts compute of the tokens that were sent to them.

torch's grouped matrix product where it is known to be right, else a product a group. Around it stands what it leaves to
its callers: rows behind the last group are not written at all (inf and nan turn up in them), a group without rows may
leave its weight's gradient unwritten, and in fp32 it refuses a gradient whose strides are 0. A saved model carries this
along.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ALIGNED = 16
"""Bytes that the kernel wants rows to begin at."""


def grouped_linear(inputs: Tensor, weight: Tensor, ends: Tensor, share: float = 1.0) -> Tensor:
    """(rows, I) and (groups, O, I) → (rows, O), zeros in rows that are in no group.

    Args:
        ends: (groups,) int32 on the same device, ascending: group g is the rows from the end of the one before to
            ends[g].
        share: what the weight's gradient is multiplied by.
    """
    return _GroupedLinear.apply(inputs, weight, ends, share)


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, ends: Tensor, share: float) -> Tensor:
        ctx.save_for_backward(inputs, weight, ends)
        ctx.share = share
        return _products(inputs, weight.transpose(1, 2), ends)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        inputs, weight, ends = ctx.saved_tensors
        gradient = gradient.contiguous()  # of a sum its strides are 0
        of_inputs = _products(gradient, weight, ends) if ctx.needs_input_grad[0] else None
        of_weight = _outer_products(gradient, inputs, ends) if ctx.needs_input_grad[1] else None
        if of_weight is not None and ctx.share != 1.0:
            of_weight.mul_(ctx.share)
        return of_inputs, of_weight, None, None


def _products(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """(rows, I) and (groups, I, O) → (rows, O)."""
    if _has_kernel(rows, matrices):
        products = torch._grouped_mm(rows, matrices, offs=ends)
        behind = torch.arange(len(rows), device=rows.device) >= ends[-1]
        return products.masked_fill_(behind[:, None], 0)
    products = rows.new_zeros(len(rows), matrices.shape[2])
    begin = 0
    for matrix, end in zip(matrices, ends.tolist(), strict=True):
        if end > begin:
            torch.mm(rows[begin:end], matrix, out=products[begin:end])
        begin = end
    return products


def _outer_products(gradient: Tensor, inputs: Tensor, ends: Tensor) -> Tensor:
    """(rows, O) and (rows, I) → (groups, O, I)."""
    if _has_kernel(gradient, inputs):
        products = torch._grouped_mm(gradient.t(), inputs, offs=ends)
        empty = torch.diff(ends, prepend=ends.new_zeros(1)) == 0
        return products.masked_fill_(empty[:, None, None], 0)
    products = inputs.new_zeros(len(ends), gradient.shape[1], inputs.shape[1])
    begin = 0
    for group, end in enumerate(ends.tolist()):
        if end > begin:
            torch.mm(gradient[begin:end].t(), inputs[begin:end], out=products[group])
        begin = end
    return products


def _has_kernel(*tensors: Tensor) -> bool:
    """Whether torch's kernel takes these: fp32 or bf16 on a CPU, bf16 on a GPU of compute capability 8 or more, in rows
    that it can load."""
    (first, *_) = tensors
    if first.numel() == 0:
        return False
    if first.device.type == "cuda":
        takes = torch.cuda.get_device_capability(first.device) >= (8, 0) and first.dtype == torch.bfloat16
    else:
        takes = first.device.type == "cpu" and first.dtype in (torch.float32, torch.bfloat16)
    return takes and hasattr(torch, "_grouped_mm") and all(map(_is_aligned, tensors))


def _is_aligned(tensor: Tensor) -> bool:
    strides = [stride for stride in tensor.stride() if stride != 1]
    return tensor.data_ptr() % _ALIGNED == 0 and all(
        stride * tensor.element_size() % _ALIGNED == 0 for stride in strides
    )
