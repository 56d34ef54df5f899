"""Dynamic Tanh as one operator of PyTorch, `torch.ops.llama_dyt.dynamic_tanh`, over kernels of our own.

Here a kernel is chosen, and here stands what PyTorch has to know of it: shapes, derivative, and that x alone is kept
for the backward pass, which computes tanh again. A registered operator, not an autograd.Function: it is seen by
torch.compile without a break, and by Gemini, which fetches a parameter when an operator is called with it.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from llama_dyt.norms.kernels.applicable import operators_apply

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def suits(x: Tensor, alpha: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the operator takes these, here and now; whatever it does not is left to the formula."""
    if not operators_apply() or x.dtype not in DTYPES or not x.dim() or alpha.numel() != 1:
        return False
    for parameter in (weight, bias):
        if parameter is not None and parameter.shape != x.shape[-1:]:
            return False
    devices = {t.device for t in (x, alpha, weight, bias) if t is not None}
    if len(devices) > 1 or x.device.type not in ("cpu", "cuda"):
        return False
    # Within torch.compile the operator is a wall. On a GPU inductor is given the formula, which it fuses with the
    # residual addition before it and the casts around it; `benchmarks/norms.py --residual` measures both ways. On a
    # CPU it would walk over the data once for every gradient, and the operator wins.
    return not (torch.compiler.is_compiling() and x.device.type == "cuda")


def backend_of(x: Tensor):
    """The module with the kernels for x's device, or None where there are none that run."""
    if x.device.type == "cpu":
        from llama_dyt.norms.kernels import cpu as dynamic_tanh_cpu

        return dynamic_tanh_cpu if dynamic_tanh_cpu.library() is not None else None
    if importlib.util.find_spec("triton") is None:
        return None
    from llama_dyt.norms.kernels import triton as dynamic_tanh_triton

    return dynamic_tanh_triton


@torch.library.custom_op("llama_dyt::dynamic_tanh", mutates_args=())
def forward_op(x: Tensor, alpha: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`dynamic_tanh` of what `suits`, contiguous whatever x is."""
    backend = backend_of(x)
    if backend is not None:
        return backend.forward(x, alpha, weight, bias)
    y = weight.float() * torch.tanh(alpha.float() * x.float())
    return (y if bias is None else y + bias.float()).to(x.dtype).contiguous()


@torch.library.custom_op("llama_dyt::dynamic_tanh_backward", mutates_args=())
def backward_op(grad: Tensor, x: Tensor, alpha: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    """Gradients of x, alpha, weight and, if there is one, bias, each in its own dtype and shape."""
    backend = backend_of(x)
    with_bias = bias is not None
    if backend is not None:
        x_grad, *sums = backend.backward(grad, x, alpha, weight, with_bias)
    else:
        x_grad, *sums = backward_formula(grad, x, alpha, weight, with_bias)
    return [x_grad, *_as_parameters(sums, alpha, weight, bias)]


def _as_parameters(sums: list[Tensor], alpha: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    """Gradients in the dtype and shape of what they are of."""
    parameters = [alpha, weight, *([] if bias is None else [bias])]
    return [s.to(p.dtype).reshape(p.shape) for s, p in zip(sums, parameters, strict=True)]


def backward_formula(grad: Tensor, x: Tensor, alpha: Tensor, weight: Tensor, with_bias: bool) -> list[Tensor]:
    """The gradients by PyTorch's own operations, differentiable themselves; of the parameters in fp32."""
    rows = (x.numel() // max(x.shape[-1], 1), x.shape[-1])
    wide, wide_grad = x.float().reshape(rows), grad.float().reshape(rows)
    t = torch.tanh(alpha.float() * wide)
    slope = wide_grad * weight.float() * (1 - t * t)
    x_grad = (slope * alpha.float()).to(x.dtype).reshape(x.shape).contiguous()
    sums = [(slope * wide).sum().reshape(1), (wide_grad * t).sum(0)]
    return [x_grad, *sums, *([wide_grad.sum(0)] if with_bias else [])]


@forward_op.register_fake
def _(x, alpha, weight, bias):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@backward_op.register_fake
def _(grad, x, alpha, weight, bias):
    tensors = [x, alpha, weight, *([] if bias is None else [bias])]
    return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in tensors]


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad):
    x, alpha, weight, bias = ctx.saved_tensors
    # Gradients are recorded here only for a derivative of them: under create_graph=True. The key is is_grads_batched's.
    batched = torch._C._dispatch_tls_is_dispatch_key_included("VmapMode")
    if torch.is_grad_enabled() or batched or not operators_apply():
        x_grad, *sums = backward_formula(grad, x, alpha, weight, bias is not None)
        grads = [x_grad, *_as_parameters(sums, alpha, weight, bias)]
    else:
        grads = backward_op(grad, x, alpha, weight, bias)
    return (*grads, None)[:4]


forward_op.register_autograd(_differentiate, setup_context=_keep)
