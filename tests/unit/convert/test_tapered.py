"""Norms that are to become Dynamic Tanh: put into a trained model, and left out when they have."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from llama_dyt.convert.calibrate import calibrate
from llama_dyt.convert.run import convert
from llama_dyt.convert.settings import parse_conversion
from llama_dyt.convert.tapered import finish
from llama_dyt.core.errors import CheckpointError, ConfigurationError
from llama_dyt.models import build_config, build_model, load_pretrained
from llama_dyt.norms.spec import NORMS
from tests.unit.convert.test_calibrate import OWN_NORM, SIZE, made, text, weights_of

GATE = NORMS.get("tapered").gate


def untrained(preset: str):
    """A model of random norms, too."""
    own = {"head_dim": 16} if preset == "gemma_2b" else {"resid_pdrop": 0.0} if preset == "phi_2" else {}
    model = build_model(build_config(preset, OWN_NORM[preset], **SIZE, **own), seed=0).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[0].rpartition(".")[2] in model.config.norm_places:
                parameter.add_(torch.rand(parameter.shape, generator=generator) * 0.5)
    return model


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(input_ids=text(2, 7)).logits


def norm_layers(model) -> list:
    """In the order that data goes through them."""
    of_layers = [
        norm for layer in model.model.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)
    ]
    return [*of_layers, model.model.norm]


def with_gates(weights, gates):
    """The same weights, as far on their way as a run would have left them."""
    setattr(weights.config, GATE.field, list(gates))
    return weights


@pytest.mark.parametrize("preset", OWN_NORM)
def test_it_is_the_original_before_it_begins_and_dynamic_tanh_when_it_has_ended(preset):
    model = untrained(preset)
    found = calibrate(weights_of(model), "tapered", [text(8, 0)])
    assert found.loss == found.loss_before and 0 < max(found.errors.values()) < 0.9
    weights = found.weights
    assert weights.config.tapered_from == OWN_NORM[preset]
    assert torch.equal(logits(made(weights)), logits(model))
    sites = len(found.errors)
    with pytest.raises(ConfigurationError, match=f"1 of {sites} norms are still on their way.*0.75 to 0.75"):
        finish(with_gates(weights, [1.0] * (sites - 1) + [0.75]), "dyt")
    tapered = made(with_gates(weights, [1.0] * sites))
    assert not torch.equal(logits(tapered), logits(model))
    finished = finish(weights, "dyt")
    assert finished.weights.config.norm_type == "dyt" and f"The {sites} norms have become dyt" in str(finished)
    plain = made(finished.weights)
    assert torch.equal(logits(plain), logits(tapered))
    assert not [name for name, _ in plain.named_parameters() if "tanh_" in name]


def test_a_folder_keeps_how_far_each_norm_is(tmp_path):
    model = made(calibrate(weights_of(untrained("15m")), "tapered", [text(4, 0)]).weights)
    model.config.taper_gates = [1.0, 0.75, 0.5, 0.25, 0.125, 0.0, 0.0]
    GATE.open(model.config, norm_layers(model))
    model.save_pretrained(tmp_path)
    for loaded in (AutoModelForCausalLM.from_pretrained(tmp_path), load_pretrained(tmp_path)):
        assert [layer.gate.item() for layer in norm_layers(loaded)] == model.config.taper_gates
        assert torch.equal(logits(loaded.eval()), logits(model))
    with pytest.raises(ConfigurationError, match="taper_gates has 7 numbers; it takes 5"):
        build_config(tmp_path, num_hidden_layers=2)


def test_it_is_not_put_in_or_left_out_by_loading(tmp_path):
    own = untrained("15m")
    own.save_pretrained(tmp_path / "own")
    with pytest.raises(CheckpointError, match="rmsnorm, and tapered needs a fit; convert.py --norm tapered"):
        load_pretrained(tmp_path / "own", norm="tapered")
    made(calibrate(weights_of(own), "tapered", [text(4, 0)]).weights).save_pretrained(tmp_path / "tapered")
    with pytest.raises(CheckpointError, match="it becomes dyt by convert.py --norm dyt"):
        load_pretrained(tmp_path / "tapered", norm="rmsnorm")


def test_the_command_leaves_a_plain_model_or_says_what_is_missing(tmp_path):
    model = untrained("15m")
    weights = calibrate(weights_of(model), "tapered", [text(4, 0)]).weights

    def command(name, output, norm="dyt"):
        flags = ["-i", str(tmp_path / name), "-o", str(tmp_path / output), "--norm", norm, "--verify"]
        convert(parse_conversion(flags), lambda line: None)

    model.save_pretrained(tmp_path / "own")
    with pytest.raises(ConfigurationError, match="--norm dyt goes with --calibrate, since the model's norm, rmsnorm"):
        command("own", "result")
    made(weights).save_pretrained(tmp_path / "underway")
    with pytest.raises(ConfigurationError, match="7 of 7 norms are still on their way"):
        command("underway", "result")
    assert not (tmp_path / "result").exists()
    made(with_gates(weights, [1.0] * 7)).save_pretrained(tmp_path / "there")
    with pytest.raises(ConfigurationError, match="--norm tapered"):
        command("there", "result", "tapered")
    command("there", "result")
    config = json.loads((tmp_path / "result/config.json").read_text())
    assert config["norm_type"] == "dyt" and not [name for name in config if name.startswith("taper")]
    result = AutoModelForCausalLM.from_pretrained(tmp_path / "result").eval()
    assert torch.equal(logits(result), logits(load_pretrained(tmp_path / "there").eval()))
