"""Dynamic Tanh's operator on a CPU: its numbers, what PyTorch knows of it, and what happens where no kernel can run."""

import json
import os
from pathlib import Path

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

from llama_dyt.norms import DynamicTanh, dynamic_tanh, dynamic_tanh_formula
from llama_dyt.norms.kernels import cpu as dynamic_tanh_cpu
from llama_dyt.norms.kernels import native
from llama_dyt.norms.kernels import operator as dynamic_tanh_op
from llama_dyt.norms.kernels.operator import backend_of, backward_op, forward_op, suits
from tests import forks


@pytest.fixture(params=["kernel", "formula"])
def both(request, monkeypatch):
    """The operator over its kernel, and as it runs where there is no compiler."""
    if request.param == "formula":
        monkeypatch.setattr(dynamic_tanh_op, "backend_of", lambda x: None)


def test_the_kernel_is_what_runs_here():
    assert dynamic_tanh_cpu.library() is not None, "no C compiler: the tests of the kernel would test the formula"
    x, alpha, weight, *_ = example((3, 8), torch.float32)
    assert backend_of(x) is dynamic_tanh_cpu
    with torch.profiler.profile() as seen:
        dynamic_tanh(x, alpha, weight)
    assert [event.key for event in seen.key_averages()].count("llama_dyt::dynamic_tanh") == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_are_those_of_double_precision(both, shape, dtype):
    for bias in (False, True):
        check_against_double(*example(shape, dtype, bias=bias))


@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    parameters=st.sampled_from(DTYPES),
    bias=st.booleans(),
    spread=st.sampled_from([1e-3, 1.0, 30.0]),
    step=st.integers(1, 3),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=150)
def test_results_are_those_of_double_precision_whatever_the_input(shape, dtype, parameters, bias, spread, step, seed):
    made = example((*shape[:-1], shape[-1] * step), dtype, parameters=parameters, bias=bias, spread=spread, seed=seed)
    check_against_double(*(None if t is None else t if t.numel() == 1 else t[..., ::step] for t in made))


def test_tanh_is_right_to_four_in_ten_million_and_never_beyond_one():
    x = torch.cat([torch.linspace(0, 12, 1_000_003), torch.logspace(-30, 30, 100_001)]).unsqueeze(0)
    y = dynamic_tanh(x, torch.ones(1), torch.ones(x.shape[-1]))
    true = torch.tanh(x.double())
    assert ((y.double() - true).abs() / true)[x > 0].max() < 4e-7
    assert y.max() == 1 and y[x >= 9].eq(1).all()
    assert torch.equal(dynamic_tanh(-x, torch.ones(1), torch.ones(x.shape[-1])), -y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_number_of_a_half_precision_is_read_and_rounded_as_pytorch_does(dtype):
    everything = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    y = dynamic_tanh(everything.unsqueeze(0), torch.ones(1), torch.ones(2**16))[0]
    exact = torch.tanh(everything.double())
    assert torch.equal(y.isnan(), exact.isnan())
    # 4e-7 beside the rounding moves a result over a tie now and then.
    different = (y != exact.to(dtype)) & ~exact.isnan()
    assert different.sum() < 200
    # Values of any size are rounded, by a weight that takes y through all of the format's range, its ends included.
    weights = torch.logspace(-50, 39, 4001) if dtype == torch.bfloat16 else torch.logspace(-9, 6, 4001)
    y = dynamic_tanh(torch.full((1, 4001), torch.inf, dtype=dtype), torch.ones(1), weights)[0]
    assert torch.equal(y, weights.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hard_numbers(both, dtype):
    check_hard_numbers(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nans_of_any_bits_stay_nans(dtype):
    nans = torch.tensor([0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000], dtype=torch.int32).view(torch.float32)
    x = torch.cat([nans.to(dtype), torch.ones(4, dtype=dtype)]).view(2, 4)
    if dtype != torch.float32:
        x[0] = torch.tensor([0x7FFF, -1, 0x7FFF, -1], dtype=torch.int16).view(dtype)
    assert dynamic_tanh(x, torch.ones(1), torch.ones(4))[0].isnan().all()
    for alpha, weight, bias in ((nans[:1], torch.ones(4), None), (nans[1:2], torch.ones(4), None)):
        assert dynamic_tanh(x, alpha, weight, bias).isnan().all()
    assert dynamic_tanh(x, torch.ones(1), nans, None).isnan().all()
    y, x_grad, *_ = outcome(dynamic_tanh, x, torch.ones(1), torch.ones(4), nans, nans.to(dtype).expand(2, 4))
    assert y.isnan().all() and x_grad.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_of_any_stride(dtype):
    check_strides(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_and_repetition_do_not_change_a_bit(dtype):
    tensors = example((1000, 130), dtype, bias=True)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 5, 2):
            torch.set_num_threads(threads)
            results.append(outcome(dynamic_tanh, *tensors))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    check_same_every_time()


@pytest.mark.parametrize("bias", [False, True])
def test_pytorch_is_told_the_truth_about_the_operator(both, bias):
    for dtype, shape in ((torch.float32, (5, 12)), (torch.bfloat16, (2, 3, 4))):
        *inputs, grad = example(shape, dtype, bias=bias)
        inputs = [None if t is None else t.requires_grad_() for t in inputs]
        torch.library.opcheck(forward_op, inputs)
        transposed = [inputs[0].mT.contiguous().mT, *inputs[1:]]
        torch.library.opcheck(forward_op, transposed, test_utils="test_faketensor")
        with torch.no_grad():
            torch.library.opcheck(backward_op, [grad, *inputs])


def test_the_operator_keeps_its_inputs_alone_for_the_backward_pass():
    x, alpha, weight, _, _ = example((64, 128), torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        dynamic_tanh(x.requires_grad_(), alpha.requires_grad_(), weight.requires_grad_())
    assert sorted(kept) == sorted(t.data_ptr() for t in (x, alpha, weight))


def test_what_the_operator_cannot_take_goes_to_the_formula():
    x, alpha, weight, bias, _ = example((4, 6), torch.float32, bias=True)
    assert suits(x, alpha, weight, bias)
    others = [
        (x.double(), alpha, weight, bias),
        (x, weight, weight, bias),  # an alpha a channel
        (x, alpha, weight, bias.unsqueeze(0)),
        (x.to("meta"), alpha.to("meta"), weight.to("meta"), None),
    ]
    for tensors in others:
        assert not suits(*tensors)
        y = dynamic_tanh(*tensors)
        assert y.device == tensors[0].device and y.dtype == tensors[0].dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_torch_compile_sees_one_graph_with_the_operator_in_it(dtype):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    layer = DynamicTanh(48, alpha_init=0.6, bias=True)
    compiled = torch.compile(lambda x, add: layer(x + add) * 2, backend=backend, fullgraph=True)
    x, *_, grad = example((10, 48), dtype)
    parameters = list(layer.parameters())
    x.requires_grad_()
    for _ in range(2):
        seen = torch.autograd.grad(compiled(x, x), [x, *parameters], grad)
    plain = torch.autograd.grad(layer(x + x) * 2, [x, *parameters], grad)
    assert all(torch.equal(a, b) for a, b in zip(seen, plain, strict=True))
    assert len(graphs) == 1 and torch.ops.llama_dyt.dynamic_tanh.default in graphs[0]


WITHOUT_A_COMPILER = """
import json, warnings, torch
from llama_dyt.norms import DynamicTanh
layer = DynamicTanh(16)
x = torch.randn(3, 16)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for _ in range(3):
        layer(x).sum().backward()
torch.testing.assert_close(layer(x), torch.tanh(0.5 * x))
assert layer.alpha.grad is not None
print(json.dumps([str(w.message) for w in told]))
"""


def test_without_a_working_compiler_one_notice_says_so(tmp_path, monkeypatch):
    variables = {"CC": "false", "XDG_CACHE_HOME": str(tmp_path)}
    ran = forks.run(["-c", WITHOUT_A_COMPILER], cwd=tmp_path, env={**os.environ, **variables})
    assert ran.returncode == 0, ran.stderr
    (notice,) = json.loads(ran.stdout)
    assert notice.startswith("Dynamic Tanh runs by PyTorch's own operations") and "/false" in notice
    assert not list(tmp_path.rglob("*.so"))
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(native.BuildError, match="none of no-such-compiler is on PATH"):
        native.find_compiler()


def test_a_library_is_built_once_and_again_for_another_source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "answer.c"
    source.write_text("int answer(void) { return 42; }\n")
    assert native.load_library(source).answer() == 42
    (library,) = (tmp_path / "cache").rglob("*.so")
    made = library.stat().st_mtime_ns
    native.load_library(source)
    assert library.stat().st_mtime_ns == made
    source.write_text("int answer(void) { return 43; }\n")
    assert native.load_library(source).answer() == 43
    assert len(list((tmp_path / "cache").rglob("*"))) == 3  # the folder and two libraries: nothing half made
    source.write_text("int answer(void) { return }\n")
    with pytest.raises(native.BuildError, match="error: expected expression"):
        native.load_library(source)
    assert len(list((tmp_path / "cache").rglob("*"))) == 3


def test_without_a_cache_that_can_be_written_a_library_is_loaded_and_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "scratch").mkdir()
    source = tmp_path / "answer.c"
    source.write_text("int answer(void) { return 44; }\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(native.tempfile, "tempdir", str(tmp_path / "scratch"))
    assert native.load_library(source).answer() == 44
    assert not list((tmp_path / "scratch").iterdir())


def test_the_kernel_uses_the_threads_of_torch():
    dynamic_tanh(*example((1000, 100), torch.float32)[:3])
    loaded = {Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines()}
    # Packages that bring one of their own, as sentencepiece does, have put a hash into its name.
    assert len([file for file in loaded if file.name.startswith(("libgomp.so", "libiomp"))]) == 1


def test_the_layer_gives_what_the_formula_gives():
    layer = DynamicTanh(32)
    x = torch.randn(4, 32)
    torch.testing.assert_close(layer(x), dynamic_tanh_formula(x, layer.alpha, layer.weight), rtol=1e-6, atol=1e-7)
