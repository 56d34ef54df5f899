"""Norms exchanged in a trained model: Dynamic Tanh fitted to what the model's own norm gave."""

from __future__ import annotations

import json

import pytest
import torch

from llama_dyt.convert.calibrate import calibrate
from llama_dyt.convert.run import convert
from llama_dyt.convert.settings import read_conversion
from llama_dyt.convert.weights import Stored, Weights
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.models import build_config, build_model, load_pretrained
from llama_dyt.norms.fitting import fit_dynamic_tanh
from llama_dyt.norms.layers.dynamic_tanh import dynamic_tanh

SIZE = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}
OWN_NORM = {"15m": "rmsnorm", "mistral_7b": "rmsnorm", "gemma_2b": "unit_offset_rmsnorm", "phi_2": "layernorm"}


def test_what_a_dynamic_tanh_gave_is_fitted_exactly():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2000, 16, generator=generator) * 3
    alpha, weight = torch.tensor([0.4]), torch.randn(16, generator=generator)
    bias = torch.randn(16, generator=generator)
    for given, has_bias in ((None, False), (bias, True)):
        fitted = fit_dynamic_tanh(inputs, dynamic_tanh(inputs, alpha, weight, given), has_bias)
        torch.testing.assert_close(fitted["alpha"], alpha, rtol=3e-3, atol=0)
        torch.testing.assert_close(fitted["weight"], weight, rtol=1e-2, atol=1e-3)
        assert ("bias" in fitted) == has_bias
        if has_bias:
            torch.testing.assert_close(fitted["bias"], bias, rtol=1e-2, atol=1e-3)


def text(rows: int, seed: int) -> torch.Tensor:
    """Each token follows from the one before, three times in four."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(97, (rows, 32), generator=generator)
    follows = torch.rand(rows, 32, generator=generator) < 0.75
    for place in range(1, 32):
        drawn[:, place] = torch.where(follows[:, place], (drawn[:, place - 1] * 5 + 3) % 97, drawn[:, place])
    return drawn


def trained(preset: str) -> torch.nn.Module:
    """A model that has learned what follows."""
    own = {"head_dim": 16} if preset == "gemma_2b" else {"resid_pdrop": 0.0} if preset == "phi_2" else {}
    model = build_model(build_config(preset, OWN_NORM[preset], **SIZE, **own), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(60):
        ids = text(16, step)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def weights_of(model: torch.nn.Module) -> Weights:
    held = {name: parameter.detach() for name, parameter in model.named_parameters()}
    stored = {name: Stored(tuple(value.shape), value.dtype, name) for name, value in held.items()}
    return Weights(model.config, stored, lambda name: held[name].clone())


def made(weights: Weights) -> torch.nn.Module:
    model = build_model(weights.config, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.read(name))
    return model.eval()


def loss_of(model: torch.nn.Module, ids: torch.Tensor) -> float:
    with torch.no_grad():
        return model(input_ids=ids, labels=ids).loss.item()


@pytest.mark.parametrize("preset", OWN_NORM)
def test_what_is_said_of_a_fit_is_so_in_the_model_that_is_made(preset):
    model, ids = trained(preset), text(32, 2000)
    found = calibrate(weights_of(model), "dyt", [ids[:16], ids[16:]])
    assert found.weights.config.norm_type == "dyt" and found.weights.config.embedding_scale
    assert found.loss_before == pytest.approx(loss_of(model, ids), rel=1e-4)
    after = made(found.weights)
    assert found.loss == pytest.approx(loss_of(after, ids), rel=1e-4)
    sites = {name.removesuffix(".alpha") for name in found.weights.stored if name.endswith(".alpha")}
    assert set(found.errors) == sites and 0 < max(found.errors.values()) < 0.5
    scale = after.model.embed_tokens.scale.item()
    assert scale == pytest.approx(48**0.5 if preset == "gemma_2b" else 1.0), "the embedding gives what it gave"
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[0].rpartition(".")[2] not in model.config.norm_places:
            assert torch.equal(after.get_parameter(name), parameter), name


def test_a_fitted_model_is_nearer_than_one_whose_norms_are_only_exchanged(tmp_path):
    model, ids = trained("phi_2"), text(32, 1000)
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="swapping norms"):
        exchanged = loss_of(load_pretrained(tmp_path, norm="dyt").eval(), ids)
    fitted = loss_of(made(calibrate(weights_of(model), "dyt", [text(32, 2000), text(32, 2001)]).weights), ids)
    before = loss_of(model, ids)
    assert fitted - before < (exchanged - before) / 3, (before, exchanged, fitted)


def test_it_needs_text_and_another_norm(tmp_path):
    model = trained("15m")
    with pytest.raises(ConfigurationError, match="--norm rmsnorm: it cannot be fitted"):
        calibrate(weights_of(model), "rmsnorm", [text(4, 0)])
    fitted = calibrate(weights_of(model), "dyt", [text(4, 0)])
    with pytest.raises(ConfigurationError, match="--norm dyt: the model has that norm already"):
        calibrate(fitted.weights, "dyt", [text(4, 0)])
    paths = ["-i", str(tmp_path), "-o", str(tmp_path / "out")]
    text_file = tmp_path / "text.jsonl"
    text_file.write_text(json.dumps({"text": "a text"}))
    assert "goes with --norm" in str(read_conversion([*paths, "--calibrate", str(text_file)])[1])
    settings, problems = read_conversion([*paths, "--norm", "dyt", "--calibrate", str(tmp_path / "absent.jsonl")])
    assert problems == []
    with pytest.raises(ConfigurationError, match=r"--calibrate .*absent\.jsonl: no such file"):
        convert(settings, print)
    assert not (tmp_path / "out").exists()
