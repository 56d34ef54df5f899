"""A norm on its way to Dynamic Tanh: which of the two it is at either end, and what is between."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from llama_dyt.models import build_config
from llama_dyt.norms import NORMS, dynamic_tanh
from llama_dyt.norms.norm_spec import FINAL

PRESETS = {"rmsnorm": "15m", "unit_offset_rmsnorm": "gemma_2b", "layernorm": "phi_2"}
TAPERED = NORMS.get("tapered")


def layers(own: str):
    """(a norm, the same on its way), with parameters that tell one from the other."""
    config = build_config(PRESETS[own], "tapered", hidden_size=96, num_attention_heads=4, num_key_value_heads=4)
    assert config.tapered_from == own
    norm, tapered = NORMS.get(own).build(config, FINAL), TAPERED.build(config, FINAL)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in tapered.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) + 0.5)
            if hasattr(norm, name):
                getattr(norm, name).copy_(parameter)
    return norm, tapered


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("own", PRESETS)
def test_at_its_ends_it_is_one_of_the_two_to_the_bit_and_both_between(own, dtype):
    norm, tapered = layers(own)
    x = (torch.randn(3, 50, 96, generator=torch.Generator().manual_seed(2)) * 2).to(dtype)
    was = norm(x)
    becomes = dynamic_tanh(x, tapered.tanh_alpha, tapered.tanh_weight, tapered.tanh_bias)
    assert (tapered.tanh_bias is not None) == (own == "layernorm")
    found = {}
    for gate in (0.0, 1.0, 0.25):
        TAPERED.gate.set(tapered, gate)
        found[gate] = tapered(x)
        assert found[gate].dtype == dtype
    assert torch.equal(found[0.0], was) and torch.equal(found[1.0], becomes) and not torch.equal(was, becomes)
    off = {torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found[0.25], (0.75 * was.float() + 0.25 * becomes.float()).to(dtype), rtol=off, atol=off)


@pytest.mark.parametrize("own", PRESETS)
def test_at_every_gate_each_parameter_has_a_gradient_that_is_its_share(own):
    norm, tapered = layers(own)
    x, share = torch.randn(20, 96, generator=torch.Generator().manual_seed(2)), 0.25
    whole = torch.autograd.grad(norm(x).square().sum(), norm.weight)[0]
    assert whole.any()
    for gate in (0.0, share, 1.0):
        TAPERED.gate.set(tapered, gate)
        gradients = dict(
            zip(
                dict(tapered.named_parameters()),
                torch.autograd.grad(tapered(x).sum(), list(tapered.parameters())),
                strict=True,
            )
        )
        for name, gradient in gradients.items():
            assert gradient.any() == (gate > 0 if name.startswith("tanh_") else gate < 1), (name, gate)


def test_compiled_it_follows_its_gate_and_is_compiled_once():
    _, tapered = layers("rmsnorm")
    counter = CompileCounter()
    compiled = torch.compile(tapered, backend=counter, fullgraph=True)
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(2))
    for gate in (0.0, 0.25, 0.5, 1.0):
        TAPERED.gate.set(tapered, gate)
        assert torch.equal(compiled(x), tapered(x))
    assert counter.frame_count == 1
