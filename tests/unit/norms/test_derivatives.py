"""Derivatives of every kind and order, through the operators where they can and around them where they cannot.

fp32 throughout: what is double goes to the formula anyway.
"""

import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn import functional as F

from llama_dyt.models import linear_cross_entropy
from llama_dyt.norms import DynamicTanh, dynamic_tanh, dynamic_tanh_formula

X, ALPHA, WEIGHT, BIAS = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), 0.7, (0.5, -1.2, 2.0, 0.3), 0.1
TARGETS = torch.tensor([1, 3, -100])
HEAD = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def inputs():
    return X.clone(), torch.tensor([ALPHA]), torch.tensor(WEIGHT), torch.full((4,), BIAS)


def dual(function, *tensors):
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, torch.ones_like(t)) for t in tensors]
        return forward_ad.unpack_dual(function(*duals)).tangent


def summed(function):
    return lambda *tensors: function(*tensors).square().sum()


EVERY = (0, 1, 2, 3)
WAYS = {
    "jvp": lambda f: jvp(f, inputs(), tuple(torch.ones_like(t) for t in inputs())),
    "forward-mode dual numbers": lambda f: dual(f, *inputs()),
    "jacfwd": lambda f: jacfwd(f, EVERY)(*inputs()),
    "jacrev": lambda f: jacrev(f, EVERY)(*inputs()),
    "vjp": lambda f: vjp(f, *inputs())[1](torch.ones_like(X)),
    "grad": lambda f: grad(summed(f), EVERY)(*inputs()),
    "hessian": lambda f: hessian(summed(f), EVERY)(*inputs()),
    "grad of grad": lambda f: grad(lambda *t: grad(summed(f))(*t).square().sum(), EVERY)(*inputs()),
    "vmap": lambda f: vmap(f, (0, None, None, None))(*inputs()),
    "gradients a sample": lambda f: vmap(grad(summed(f), EVERY), (0, None, None, None))(*inputs()),
    "double backward": lambda f: torch.autograd.functional.hessian(summed(f), inputs()),
    "batched backward": lambda f: torch.autograd.functional.jacobian(f, inputs(), vectorize=True),
    "compiled": lambda f: torch.compile(vmap(grad(summed(f))), backend="aot_eager", fullgraph=True)(
        X, torch.full((3, 1), ALPHA), torch.tensor([WEIGHT] * 3), torch.full((3, 4), BIAS)
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_dynamic_tanh_has_the_derivatives_of_its_formula(way):
    expected = WAYS[way](dynamic_tanh_formula)
    assert torch.cat([t.flatten() for t in torch.utils._pytree.tree_leaves(expected)]).abs().max() > 0.1
    torch.testing.assert_close(WAYS[way](dynamic_tanh), expected, rtol=1e-5, atol=1e-6)


def test_the_derivative_of_a_layers_gradient_is_the_formulas():
    """As a penalty on gradients asks for it: create_graph, then backward to the parameters."""

    def penalty(function, tensors):
        tensors = [t.requires_grad_() for t in tensors]
        grads = torch.autograd.grad(summed(function)(*tensors), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), tensors)

    expected = penalty(dynamic_tanh_formula, inputs())
    torch.testing.assert_close(penalty(dynamic_tanh, inputs()), expected, rtol=1e-5, atol=1e-6)
    halves = [t.bfloat16() for t in inputs()]
    assert [g.dtype for g in penalty(dynamic_tanh, halves)] == [torch.bfloat16] * 4


def whole_logits(hidden, head, targets):
    return F.cross_entropy(hidden @ head.T, targets, reduction="sum")


LOSS_WAYS = {
    "jvp": lambda f: jvp(lambda x, head: f(x, head, TARGETS), (X, HEAD), (torch.ones_like(X), HEAD))[1],
    "forward-mode dual numbers": lambda f: dual(lambda x: f(x, HEAD, TARGETS), X),
    "grad": lambda f: grad(f, (0, 1))(X, HEAD, TARGETS),
    "hessian": lambda f: hessian(f)(X, HEAD, TARGETS),
    "gradients a sample": lambda f: vmap(grad(lambda x, t: f(x[None], HEAD, t[None])))(X, TARGETS),
    "batched backward": lambda f: torch.autograd.functional.jacobian(lambda x: f(x, HEAD, TARGETS), X, vectorize=True),
}


@pytest.mark.parametrize("way", LOSS_WAYS)
def test_the_loss_of_hidden_states_has_the_derivatives_of_whole_logits(way):
    expected = LOSS_WAYS[way](whole_logits)
    torch.testing.assert_close(LOSS_WAYS[way](linear_cross_entropy), expected, rtol=1e-5, atol=1e-6)


def test_a_second_derivative_of_the_loss_of_hidden_states_is_refused_with_the_way_to_it():
    with pytest.raises(RuntimeError, match="no second derivative .* skip_logits=False"):
        torch.autograd.functional.hessian(lambda x: linear_cross_entropy(x, HEAD, TARGETS), X)


@pytest.mark.parametrize(
    "x, error, told",
    [
        (torch.ones(3, 4, dtype=torch.long), TypeError, "floating-point activations, not torch.int64"),
        (torch.ones(3, 4, dtype=torch.bool), TypeError, "floating-point activations, not torch.bool"),
        (torch.ones(3, 1), ValueError, r"last dimension of \(4,\) was given x of shape \(3, 1\)"),
        (torch.ones(3, 5), ValueError, r"was given x of shape \(3, 5\)"),
        (torch.tensor(1.0), ValueError, r"was given x of shape \(\)"),
    ],
)
def test_an_input_that_is_not_of_the_layers_kind_is_refused(x, error, told):
    with pytest.raises(error, match=told):
        DynamicTanh(4)(x)


def test_gradients_a_sample_of_a_whole_model_are_those_of_one_sample_at_a_time(tiny):
    model, ids = tiny
    parameters = dict(model.named_parameters())

    def loss(parameters, row):
        return functional_call(model, parameters, (row[None],), {"labels": row[None]}).loss

    rows = vmap(grad(loss), (None, 0), randomness="same")(parameters, ids)
    model.zero_grad()
    model(ids[:1], labels=ids[:1]).loss.backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(rows[name][0], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.fixture(scope="module")
def tiny():
    from llama_dyt.models import build_config, build_model

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    config = build_config("15m", "dyt", vocab_size=61, attn_implementation="eager", **sizes)
    ids = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(0))
    return build_model(config, seed=0).train(), ids


RUN_A_PROGRAM = """
import sys
sys.modules["llama_dyt"] = None  # importing it now fails, installed or not
import torch
for kind in ("layer", "logits", "loss"):
    tensors, expected = torch.load(kind + ".pt")
    program = torch.export.load(kind + ".pt2")
    operators = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert not [name for name in operators if "llama_dyt" in name], operators
    torch.testing.assert_close(program.module()(**tensors), expected, rtol=1e-5, atol=1e-5)
torch.testing.assert_close(torch.jit.load("layer.ts")(**torch.load("layer.pt")[0]), torch.load("layer.pt")[1])
"""


class Tensors(torch.nn.Module):
    """One tensor of a model's output, which alone is of a kind that a process without transformers knows."""

    def __init__(self, model, wanted):
        super().__init__()
        self.model, self.wanted = model, wanted

    def forward(self, **inputs):
        return self.model(**inputs, use_cache=False)[self.wanted]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_an_exported_program_loads_without_this_package(tiny, tmp_path):
    model, ids = tiny
    layer = DynamicTanh(4, bias=True)
    cases = {
        "layer": (layer, {"x": X}, layer(X)),
        "logits": (Tensors(model, "logits"), {"input_ids": ids}, model(ids).logits),
        "loss": (Tensors(model, "loss"), {"input_ids": ids, "labels": ids}, model(ids, labels=ids).loss),
    }
    for kind, (module, tensors, expected) in cases.items():
        torch.save((tensors, expected.detach()), tmp_path / f"{kind}.pt")
        torch.export.save(torch.export.export(module, (), kwargs=tensors), tmp_path / f"{kind}.pt2")
    torch.jit.trace(layer, example_kwarg_inputs={"x": X}).save(tmp_path / "layer.ts")
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN_A_PROGRAM], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
