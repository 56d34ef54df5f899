"""Dynamic Tanh's Triton kernels on the GPU: what the interpreter was asked, sizes it is too slow for, compiling."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "norms"))
from dynamic_tanh_checks import (
    DTYPES,
    SHAPES,
    check_against_double,
    check_hard_numbers,
    check_same_every_time,
    check_strides,
    example,
    outcome,
)

from llama_dyt.norms import DynamicTanh, dynamic_tanh, dynamic_tanh_formula
from llama_dyt.norms.kernels.operator import backend_of, forward_op, suits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (4099, 4096), (16384, 1000), (300, 8192)], ids=str)
def test_results_are_those_of_double_precision(shape, dtype):
    tensors = example(shape, dtype, bias=shape[-1] % 2 == 0, device="cuda")
    assert suits(*tensors[:4]) and backend_of(tensors[0]).__name__.endswith("dynamic_tanh_triton")
    check_against_double(*tensors)


@pytest.mark.parametrize("parameters", DTYPES, ids=str)
def test_gradients_come_in_the_parameters_precision(parameters):
    check_against_double(*example((512, 640), torch.bfloat16, parameters=parameters, bias=True, device="cuda"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hard_numbers_and_strides(dtype):
    check_hard_numbers(dtype, "cuda")
    check_strides(dtype, "cuda")


def test_the_same_every_time():
    check_same_every_time("cuda", (8192, 4096))


def test_more_elements_than_32_bits_count():
    x = torch.full((2**19 + 3, 4100), 0.5, dtype=torch.bfloat16, device="cuda")
    y = dynamic_tanh(x, torch.ones(1, device="cuda"), torch.ones(4100, device="cuda"))
    assert y.eq(y[0, 0]).all()


def test_pytorch_is_told_the_truth_about_the_operator():
    *inputs, _ = example((6, 20), torch.float32, bias=True, device="cuda")
    torch.library.opcheck(forward_op, [t.requires_grad_() for t in inputs])


@pytest.mark.parametrize("fused", [True, False], ids=["formula", "operator"])
def test_compiled_it_is_one_graph_and_the_same_numbers(fused):
    """The formula, which is what `dynamic_tanh` takes within torch.compile on a GPU, and the operator itself."""
    torch._dynamo.reset()
    layer = DynamicTanh(512, alpha_init=0.6, bias=True).cuda()
    function = layer if fused else lambda x: forward_op(x, layer.alpha, layer.weight, layer.bias)
    compiled = torch.compile(lambda x: function(x + x) * 2, fullgraph=True)
    x, *_, grad = example((256, 512), torch.bfloat16, device="cuda")
    parameters = list(layer.parameters())
    x.requires_grad_()
    seen = torch.autograd.grad(compiled(x), [x, *parameters], grad)
    plain = torch.autograd.grad(layer(x + x) * 2, [x, *parameters], grad)
    for a, b in zip(seen, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


def test_no_host_synchronisation():
    tensors = example((1024, 1024), torch.bfloat16, bias=True, device="cuda")
    outcome(dynamic_tanh, *tensors)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        outcome(dynamic_tanh, *tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_it_keeps_x_alone():
    x, alpha, weight, _, grad = example((8192, 4096), torch.bfloat16, device="cuda")
    x.requires_grad_()
    before = torch.cuda.memory_allocated()
    y = dynamic_tanh(x, alpha, weight)
    assert torch.cuda.memory_allocated() - before <= y.numel() * y.element_size() + 2**20
    y.backward(grad)
    formula = dynamic_tanh_formula(x.detach(), alpha, weight)
    torch.testing.assert_close(y.detach(), formula, rtol=1e-2, atol=1e-3)
