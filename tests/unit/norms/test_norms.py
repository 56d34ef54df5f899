"""DynamicTanh, RMSNorm and their registry: the formula, the precision inside, the gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.models import build_config
from llama_dyt.norms import NORMS, DynamicTanh, RMSNorm, dynamic_tanh
from llama_dyt.norms.spec import ATTENTION, FINAL


def test_dynamic_tanh_is_the_papers_formula_with_llamas_parameters():
    layer = DynamicTanh(8, alpha_init=0.8)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {"alpha": (1,), "weight": (8,)}
    assert layer.alpha.item() == pytest.approx(0.8) and layer.weight.eq(1).all()
    with torch.no_grad():
        layer.weight.copy_(torch.arange(8.0))
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(layer(x), torch.arange(8.0) * torch.tanh(0.8 * x), rtol=0, atol=1e-6)


def test_default_alpha_is_a_half_and_bias_is_optional():
    layer = DynamicTanh(4, bias=True)
    assert layer.alpha.item() == 0.5 and layer.bias.shape == (4,) and layer.bias.eq(0).all()
    with torch.no_grad():
        layer.bias.fill_(2.0)
    assert layer(torch.zeros(1, 4)).eq(2).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_at_the_end(dtype):
    torch.manual_seed(0)
    layer = DynamicTanh(64, alpha_init=0.3)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5)
    layer = layer.to(dtype)
    x = (4 * torch.randn(32, 64)).to(dtype)
    exact = layer.weight.double() * torch.tanh(layer.alpha.double() * x.double())
    assert layer(x).dtype == dtype
    # Not one element differs from the exact value rounded, but for ties that fp32 itself decides.
    assert (layer(x) != exact.to(dtype)).float().mean() < 1e-3
    in_half = layer.weight * torch.tanh(layer.alpha * x)
    assert (in_half != exact.to(dtype)).float().mean() > 0.05, "the test would not notice half precision inside"


def test_output_takes_the_inputs_dtype_not_the_parameters():
    assert DynamicTanh(4)(torch.ones(4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert RMSNorm(4)(torch.ones(4, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_of_dynamic_tanh_are_those_of_the_formula(bias):
    torch.manual_seed(0)
    tensors = [torch.randn(3, 5), torch.tensor([0.7]), torch.rand(5)] + ([torch.rand(5)] if bias else [])
    assert torch.autograd.gradcheck(dynamic_tanh, [t.double().requires_grad_() for t in tensors])


@given(st.floats(0.01, 10), st.floats(-1e4, 1e4))
@settings(max_examples=50)
def test_dynamic_tanh_is_odd_and_bounded_by_its_weight(alpha, value):
    layer = DynamicTanh(1, alpha_init=alpha)
    y, mirrored = layer(torch.tensor([[value]])), layer(torch.tensor([[-value]]))
    assert y.item() == -mirrored.item() and abs(y.item()) <= 1


def test_rms_norm_is_transformers_in_fp32_to_the_last_bit():
    torch.manual_seed(0)
    ours, theirs = RMSNorm(48, eps=1e-5), LlamaRMSNorm(48, eps=1e-5)
    with torch.no_grad():
        ours.weight.uniform_(0.5, 1.5)
        theirs.weight.copy_(ours.weight)
    x = torch.randn(7, 48)
    assert torch.equal(ours(x), theirs(x))


def test_each_norm_is_built_by_name_for_its_place():
    assert set(NORMS.names()) == {"dyt", "layernorm", "rmsnorm", "tapered", "unit_offset_rmsnorm"}
    config = build_config("15m", attn_alpha_init_value=0.3, dec_alpha_init_value=0.2)
    first, last = (NORMS.get("dyt").build(config, place) for place in (ATTENTION, FINAL))
    assert isinstance(first, DynamicTanh) and first.alpha.item() == pytest.approx(0.3) and first.bias is None
    assert last.alpha.item() == pytest.approx(0.2)
    rms = NORMS.get("rmsnorm").build(build_config("15m", "rmsnorm", rms_norm_eps=1e-3), FINAL)
    assert isinstance(rms, RMSNorm) and rms.eps == 1e-3


def test_an_unknown_norm_names_those_there_are_and_how_ones_own_is_brought_in():
    with pytest.raises(ConfigurationError, match=r"'groupnorm'.*dyt, .*rmsnorm.*--import"):
        NORMS.get("groupnorm")
