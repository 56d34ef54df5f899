"""The Triton kernels of Dynamic Tanh under Triton's interpreter; run by test_dynamic_tanh_triton.py, not on its own.

Triton looks for TRITON_INTERPRET when it is imported, so these tests have a process of their own. The operator is given
the Triton kernels for CPU tensors: autograd, dtypes and strides go the way they go on a GPU.
"""

import os

import pytest
import torch
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
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_dyt.norms import dynamic_tanh
from llama_dyt.norms.kernels import operator as dynamic_tanh_op

assert os.environ.get("TRITON_INTERPRET") == "1", "run tests/unit/norms/test_dynamic_tanh_triton.py"
from llama_dyt.norms.kernels import triton as dynamic_tanh_triton  # noqa: E402

dynamic_tanh_op.backend_of = lambda x: dynamic_tanh_triton
ULPS = {torch.float32: 0.5, torch.float16: 0.5, torch.bfloat16: 1.0}
"""The interpreter cuts bf16 off; a GPU rounds."""


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """How often a Triton kernel was started."""
    counted = []
    for name in ("forward", "backward"):
        original = getattr(dynamic_tanh_triton, name)
        monkeypatch.setattr(
            dynamic_tanh_triton, name, lambda *a, name=name, original=original: counted.append(name) or original(*a)
        )
    yield counted
    assert {"forward", "backward"} <= set(counted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_are_those_of_double_precision(shape, dtype):
    for bias in (False, True):
        check_against_double(*example(shape, dtype, bias=bias), ulps=ULPS[dtype])


@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    parameters=st.sampled_from(DTYPES),
    bias=st.booleans(),
    spread=st.sampled_from([1e-3, 1.0, 30.0]),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=15)
def test_results_are_those_of_double_precision_whatever_the_input(shape, dtype, parameters, bias, spread, seed):
    made = example(tuple(shape), dtype, parameters=parameters, bias=bias, spread=spread, seed=seed)
    check_against_double(*made, ulps=1.0 if torch.bfloat16 in (dtype, parameters) else 0.5)


@pytest.mark.parametrize("tile", [64, 256])
def test_many_tiles_many_programs_and_blocks_of_columns(monkeypatch, tile):
    """As on a large GPU: programs beside and above each other, each over several tiles, the last ones half empty."""
    monkeypatch.setattr(dynamic_tanh_triton, "TILE", tile)
    monkeypatch.setattr(dynamic_tanh_triton, "WIDEST", 32)
    monkeypatch.setattr(dynamic_tanh_triton, "SUM_ROWS", 2)
    monkeypatch.setattr(dynamic_tanh_triton, "SUM_COLUMNS", 16)
    monkeypatch.setattr(dynamic_tanh_triton, "_processors", lambda device: 3)
    x, *_ = made = example((45, 75), torch.float32, bias=True)
    *_, grid, tiles = dynamic_tanh_triton._plan(x, "backward")
    assert grid[0] > 1 and grid[1] == 3 and tiles > 1
    check_against_double(*made)


def test_hard_numbers():
    for dtype in (torch.float32, torch.float16):  # no rounding of infinities for bf16 in the interpreter
        check_hard_numbers(dtype)


def test_views_of_any_stride():
    check_strides(torch.float32)


def test_the_same_every_time():
    check_same_every_time(shape=(40, 33))


def test_the_result_is_the_cpus():
    """One function for tanh in both kernels: they differ by no more than a compiler's choice of multiply-add."""
    from llama_dyt.norms.kernels import cpu as dynamic_tanh_cpu

    x, alpha, weight, bias, grad = example((16, 64), torch.float32, bias=True)
    ours = outcome(dynamic_tanh, x, alpha, weight, bias, grad)
    torch.testing.assert_close(ours[0], dynamic_tanh_cpu.forward(x, alpha, weight, bias), rtol=1e-6, atol=1e-6)
    for a, b in zip(ours[1:], dynamic_tanh_cpu.backward(grad, x, alpha, weight, True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
