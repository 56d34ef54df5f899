"""What every Dynamic Tanh must give, wherever it is computed: the kernels for CPUs, GPUs and the interpreter share it.

Its own file because the same questions are put to kernels that run in different processes and on different machines.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llama_dyt.norms import dynamic_tanh, dynamic_tanh_formula

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(1, 1), (1, 1000), (5, 1), (7, 64), (2, 3, 17), (67, 300), (3, 1500), (33,), (0, 8), (4, 0), (2, 0, 5)]


def example(shape, dtype, *, parameters=torch.float32, bias=False, device="cpu", seed=0, spread=3.0):
    """x, alpha, weight, bias or None, and a gradient for y; x from the straight part of tanh to the flat one."""
    make = torch.Generator().manual_seed(seed)
    x = (spread * torch.randn(shape, generator=make)).to(dtype)
    grad = torch.randn(shape, generator=make).to(dtype)
    alpha = torch.tensor([0.7])
    weight, offset = torch.randn(shape[-1:], generator=make), torch.randn(shape[-1:], generator=make)
    tensors = [alpha.to(parameters), weight.to(parameters), offset.to(parameters) if bias else None]
    return [None if t is None else t.to(device) for t in (x, *tensors, grad)]


def outcome(function, x, alpha, weight, bias, grad) -> list[Tensor]:
    """y and the gradients of x, alpha, weight and bias."""
    inputs = [t.detach().requires_grad_() for t in (x, alpha, weight, bias) if t is not None]
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, grad)]


def check_against_double(x, alpha, weight, bias, grad, ulps=0.5) -> None:
    """Every result within fp32's error of the exact one, rounded once; sums within it of the sum of absolute values.

    Args:
        ulps: how many of its own last places a result may be wrong by beside that: half of one where rounding is to
            nearest. Triton's interpreter cuts bf16 off instead.
    """
    results = outcome(dynamic_tanh, x, alpha, weight, bias, grad)
    doubles = [None if t is None else t.double() for t in (x, alpha, weight, bias, grad)]
    exact = outcome(dynamic_tanh_formula, *doubles)
    wide, slope, scale, offset, upstream = doubles
    columns = upstream.reshape(-1, x.shape[-1]) if x.numel() else upstream.reshape(0, x.shape[-1])
    magnitudes = [
        (scale.expand(x.shape).abs() if offset is None else scale.abs().expand(x.shape) + offset.abs()),
        (upstream * scale * slope).abs(),
        (upstream * scale * wide).abs().sum().reshape(1),
        columns.abs().sum(0),
        columns.abs().sum(0),
    ]
    names = ["y", "x's gradient", "alpha's gradient", "weight's gradient", "bias's gradient"]
    owners = [x, x, alpha, weight, bias]
    for name, owner, result, true, magnitude in zip(names, owners, results, exact, magnitudes, strict=False):
        assert result.dtype == owner.dtype and result.shape == owner.shape, name
        info = torch.finfo(owner.dtype)
        allowed = 2e-6 * magnitude + 2 * ulps * (info.eps * true.abs() + info.smallest_normal * info.eps)
        wrong = (result.double() - true).abs() > allowed
        assert not wrong.any(), f"{name}: {result[wrong][:5]} for {true[wrong][:5]}"


def check_hard_numbers(dtype, device="cpu") -> None:
    """Zeros keep their sign, flat ends are exactly flat, nan stays in its place and reaches every sum it is in."""
    values = [0.0, -0.0, 60.0, -60.0, torch.inf, -torch.inf, torch.finfo(dtype).max, -torch.finfo(dtype).max]
    values += [torch.finfo(dtype).smallest_normal, 1e-3]
    x = torch.tensor([values, values], dtype=dtype, device=device)
    columns = len(values)
    alpha, weight = torch.ones(1, device=device), torch.full((columns,), 2.0, device=device)
    y, x_grad, _, weight_grad = outcome(dynamic_tanh, x, alpha, weight, None, torch.ones_like(x))
    true = 2 * torch.tanh(x.double())
    assert torch.equal(y[0].signbit(), x[0].signbit())
    torch.testing.assert_close(y.double(), true, rtol=torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).tiny)
    assert y[:, 2:8].abs().eq(2).all() and x_grad[:, 2:8].eq(0).all()
    assert weight_grad[2:8].tolist() == [2, -2, 2, -2, 2, -2]

    x[1, 4] = torch.nan
    y, x_grad, alpha_grad, weight_grad = outcome(dynamic_tanh, x, alpha, weight, None, torch.ones_like(x))
    expected = torch.zeros_like(x, dtype=torch.bool)
    expected[1, 4] = True
    assert torch.equal(y.isnan(), expected) and torch.equal(x_grad.isnan(), expected)
    assert alpha_grad.isnan().all() and torch.equal(weight_grad.isnan(), expected.any(0))

    x = torch.ones(3, columns, dtype=dtype, device=device)
    for spoiled in ("alpha", "weight", "grad"):
        tensors = {"alpha": alpha.clone(), "weight": weight.clone(), "grad": torch.ones_like(x)}
        tensors[spoiled].view(-1)[0] = torch.nan
        y, x_grad, alpha_grad, weight_grad = outcome(
            dynamic_tanh, x, tensors["alpha"], tensors["weight"], None, tensors["grad"]
        )
        assert spoiled == "grad" or y[:, 0].isnan().all(), spoiled
        assert x_grad[0, 0].isnan() and alpha_grad.isnan().all(), spoiled
        assert spoiled == "weight" or weight_grad[0].isnan(), spoiled


def check_strides(dtype, device="cpu") -> None:
    """Views of any stride, for x and for the gradient, give what their contiguous copies give, to the last bit."""
    x, alpha, weight, _, grad = example((24, 96), dtype, device=device)
    column = torch.randn(96, 24, device=device).to(dtype).t()
    for view in (
        column,
        x[::3],
        torch.cat([x, x], 1)[:, 96:],
        x.reshape(2, 3, 4, 96).transpose(0, 2),
        x[:1].expand(9, 96),
    ):
        upstream = grad[:1].expand(view.shape)
        plain = outcome(dynamic_tanh, view.contiguous(), alpha, weight, None, upstream.contiguous())
        for a, b in zip(outcome(dynamic_tanh, view, alpha, weight, None, upstream), plain, strict=True):
            assert torch.equal(a, b)


def check_same_every_time(device="cpu", shape=(700, 520)) -> None:
    tensors = example(shape, torch.float32, bias=True, device=device)
    first = outcome(dynamic_tanh, *tensors)
    for _ in range(5):
        for a, b in zip(first, outcome(dynamic_tanh, *tensors), strict=True):
            assert torch.equal(a, b)
