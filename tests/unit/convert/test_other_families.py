"""Every family goes through convert.py: plain ones there and back, with Dynamic Tanh written, folded and verified."""

from __future__ import annotations

import json

import pytest
import torch
from conversions import TOKENS, converted, hf_logits
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.models import build_config, build_model
from llama_dyt.models.spec import FAMILIES

FIGURES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 128,
}
OF_FAMILY = {"mistral": {"sliding_window": 8}, "gemma": {"head_dim": 32}, "phi": {"partial_rotary_factor": 0.5}}
PLAIN_TYPES = [family.plain_type for family in FAMILIES if family.plain_type is not None]


def moved(model):
    """No parameter at the 0 or 1 that would hide a mistake."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("plain_type", PLAIN_TYPES)
def test_a_plain_model_goes_there_and_back(plain_type, tmp_path):
    config = AutoConfig.for_model(plain_type, **FIGURES, **OF_FAMILY.get(plain_type, {}))
    model = moved(AutoModelForCausalLM.from_config(config))
    model.save_pretrained(tmp_path / "hf")
    half = converted(tmp_path / "hf", tmp_path / "half", "--dtype", "bf16", "--verify")
    assert json.loads((half / "config.json").read_text())["dtype"] == "bfloat16"
    again = converted(converted(tmp_path / "hf", tmp_path / "ours", "--to", "ours"), tmp_path / "again", "--verify")
    assert not list(again.glob("*.py")) and json.loads((again / "config.json").read_text())["model_type"] == plain_type
    with torch.no_grad():
        torch.testing.assert_close(hf_logits(again), model(TOKENS).logits[0], rtol=0, atol=1e-5)
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "hf", again))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("plain_type", PLAIN_TYPES)
def test_dynamic_tanh_is_folded(plain_type, tmp_path, capsys):
    fields = {"model_type": plain_type, **FIGURES, **OF_FAMILY.get(plain_type, {})}
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/config.json").write_text(json.dumps(fields))
    model = moved(build_model(build_config(tmp_path / "figures", "dyt"), seed=0))
    model.save_pretrained(tmp_path / "source")
    result = converted(tmp_path / "source", tmp_path / "folded", "--fold_dyt", "--verify")
    with torch.no_grad():
        expected = model(TOKENS).logits[0]
    assert expected.abs().max() > 0.3
    torch.testing.assert_close(hf_logits(result), expected, rtol=1e-5, atol=1e-5)
    norms = [name for name in load_file(result / "model.safetensors") if "norm." in name and not name.endswith("alpha")]
    tied = model.config.tie_word_embeddings
    assert bool(norms) == tied and ("the last norm keeps its weight" in capsys.readouterr().out) == tied


@pytest.mark.parametrize("plain_type", [kind for kind in PLAIN_TYPES if kind != "llama"])
def test_metas_form_is_llamas_alone(plain_type, tmp_path):
    config = AutoConfig.for_model(plain_type, **FIGURES, **OF_FAMILY.get(plain_type, {}))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "hf")
    with pytest.raises(ConfigurationError, match=f"--to meta: .* this is a {plain_type.capitalize()}"):
        converted(tmp_path / "hf", tmp_path / "meta", "--to", "meta")
