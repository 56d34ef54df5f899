"""Dynamic Tanh folded: the same logits, its weights gone, and what cannot be folded said."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from conversions import TOKENS, converted, hf_logits, tiny_model
from safetensors.torch import load_file
from torch import nn

from llama_dyt.convert.fold import fold
from llama_dyt.convert.weights import Stored, Weights
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.models.spec import ModelSpec
from llama_dyt.norms.layers.dynamic_tanh import DynamicTanh, scaled_tanh


def test_logits_stay_and_weights_go(tmp_path, capsys):
    model = tiny_model("dyt")
    model.save_pretrained(tmp_path / "source")
    result = converted(tmp_path / "source", tmp_path / "folded", "--fold_dyt", "--verify")
    with torch.no_grad():
        expected = model(TOKENS).logits[0]
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(hf_logits(result), expected, rtol=0, atol=1e-5)
    tensors = load_file(result / "model.safetensors")
    norms = {name for name in tensors if "norm" in name}
    assert norms and all(name.endswith(".alpha") for name in norms)
    assert sum(map(torch.Tensor.numel, tensors.values())) == sum(p.numel() for p in model.parameters()) - 5 * 64
    assert (
        "Weights of 5 norms folded into the projections behind them (320 parameters fewer)" in capsys.readouterr().out
    )
    config = json.loads((result / "config.json").read_text())
    assert config["folded_norms"] == ["attention", "feed_forward", "final"]


def test_a_tied_heads_norm_is_left_and_that_is_said(tmp_path, capsys):
    model = tiny_model("dyt", tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "source")
    result = converted(tmp_path / "source", tmp_path / "folded", "--fold_dyt", "--verify")
    assert "the last norm keeps its weight, since its reader is the embedding too" in capsys.readouterr().out
    with torch.no_grad():
        torch.testing.assert_close(hf_logits(result), model(TOKENS).logits[0], rtol=0, atol=1e-5)
    weights = [name for name in load_file(result / "model.safetensors") if name.endswith("norm.weight")]
    assert weights == ["model.norm.weight"]


def test_half_precision_is_rounded_once(tmp_path):
    model = tiny_model("dyt")
    model.save_pretrained(tmp_path / "source")
    result = converted(tmp_path / "source", tmp_path / "folded", "--fold_dyt", "--dtype", "bf16", "--verify")
    own = model.model.layers[0]
    exact = own.self_attn.k_proj.weight.double() * own.input_layernorm.weight.double()
    found = load_file(result / "model.safetensors")["model.layers.0.self_attn.k_proj.weight"]
    assert found.dtype == torch.bfloat16 and (found == exact.to(torch.bfloat16)).float().mean() > 0.999


def test_what_is_folded_is_not_folded_again(tmp_path):
    tiny_model("dyt").save_pretrained(tmp_path / "source")
    result = converted(tmp_path / "source", tmp_path / "folded", "--fold_dyt")
    with pytest.raises(ConfigurationError, match="--fold_dyt: the model's norms are folded already; leave it out"):
        converted(result, tmp_path / "again", "--fold_dyt")
    assert torch.equal(hf_logits(converted(result, tmp_path / "copied")), hf_logits(result))


def with_norm_biases(model) -> Weights:
    """A model's weights, each norm with a bias beside its weight."""
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for name in [name for name in tensors if name.endswith("norm.weight")]:
        tensors[name.replace("weight", "bias")] = torch.randn_like(tensors[name])
    stored = {name: Stored(tuple(tensor.shape), tensor.dtype, name) for name, tensor in tensors.items()}
    return Weights(model.config, stored, lambda name: tensors[name].clone())


def test_a_bias_goes_into_the_projections_biases_where_they_have_one():
    model = tiny_model("dyt", attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    weights = with_norm_biases(model)
    folded = fold(weights).weights
    at = "model.layers.1."
    norm = DynamicTanh(64, bias=True)
    norm.load_state_dict({part: weights.read(f"{at}input_layernorm.{part}") for part in ("alpha", "weight", "bias")})
    x = torch.randn(5, 64)
    for projection in ("q_proj", "k_proj", "v_proj"):
        before, after = (nn.Linear(64, 64 if projection == "q_proj" else 32) for _ in range(2))
        for linear, source in ((before, weights), (after, folded)):
            name = f"{at}self_attn.{projection}"
            linear.load_state_dict({part: source.read(f"{name}.{part}") for part in ("weight", "bias")})
        torch.testing.assert_close(after(scaled_tanh(x, norm.alpha)), before(norm(x)), rtol=1e-5, atol=1e-5)
    assert not [name for name in folded.stored if name.endswith("layernorm.bias")]


def test_a_family_that_does_not_say_who_reads_a_norm_is_refused(monkeypatch):
    model = tiny_model("dyt")
    weights = with_norm_biases(model)
    monkeypatch.setattr(
        ModelSpec, "read_by", lambda self, norm: () if norm.startswith("post") else self.column_parallel[:3]
    )
    with pytest.raises(
        ConfigurationError, match="LLaMA does not say which projections read .*0.post_attention_layernorm"
    ):
        fold(replace(weights, stored={k: v for k, v in weights.stored.items() if not k.endswith("norm.bias")}))


def test_a_bias_without_a_place_is_refused():
    with pytest.raises(
        ConfigurationError, match="input_layernorm has a bias, and model.layers.0.self_attn.q_proj, which"
    ):
        fold(with_norm_biases(tiny_model("dyt")))
