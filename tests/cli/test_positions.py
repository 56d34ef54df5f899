"""How long sequences may be: the export says what was trained, and what lies beyond a model's positions is told."""

from __future__ import annotations

import json

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

import generate
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.data.tokenizing.tokenizer import load_tokenizer
from llama_dyt.models import RotaryEmbedding, build_config, extend_positions
from llama_dyt.training.plan import make_plan
from tests.cli.conftest import NUM_STEPS, VOCAB_SIZE

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
ROPE = {
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0},
}


@pytest.fixture
def config_file(tmp_path):
    LlamaConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=32, **SIZES).save_pretrained(tmp_path)
    return tmp_path / "config.json"


def test_a_config_file_with_fewer_positions_is_told_and_raised(corpus, config_file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    flags = ["-c", str(config_file), "-d", str(corpus.train), "--tokenizer", str(corpus.tokenizer), "--max_steps", "1"]
    for max_length, positions in (("48", 48), ("16", 32)):
        plan = make_plan("pretrain", [*flags, "--max_length", max_length])
        assert plan.model_config.max_position_embeddings == positions
        told = [line for line in plan.warnings if "positions" in line]
        assert bool(told) == (positions == 48)
    (told,) = [w for w in make_plan("pretrain", [*flags, "--max_length", "48"]).warnings if "positions" in w]
    assert told.startswith(f"--max_length 48 is beyond the 32 positions of {config_file}")


def test_weights_with_fewer_positions_are_told_and_raised(corpus, pretrained, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model = pretrained.step(NUM_STEPS) / "model"
    own = json.loads((model / "config.json").read_text())["max_position_embeddings"]
    flags = ["--model_path", str(model), "-d", str(corpus.prompts), "--max_length", str(own + 8)]
    plan = make_plan("finetune", flags)
    assert plan.model_config.max_position_embeddings == own + 8
    assert any(f"beyond the {own} positions of {model}" in line for line in plan.warnings)


def test_a_resumed_run_of_shorter_sequences_keeps_the_positions(corpus, pretrained, monkeypatch, tmp_path):
    """A checkpoint whose model reached further says so, whatever the config of the run that goes on has."""
    monkeypatch.chdir(tmp_path)
    step = pretrained.step(NUM_STEPS)
    config = json.loads((step / "model" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 32}))
    flags = corpus.pretrain_flags(save_dir="run", load=step, config=tmp_path / "config.json")
    plan = make_plan("pretrain", flags)
    assert plan.model_config.max_position_embeddings == config["max_position_embeddings"] > 32
    assert not [line for line in plan.warnings if "positions" in line]


@pytest.mark.parametrize("kind", ROPE)
def test_more_positions_do_not_change_the_frequencies(kind):
    config = build_config("15m", rope_parameters={"rope_theta": 1e4, **ROPE[kind]}, max_position_embeddings=128)
    before = RotaryEmbedding(config)
    extend_positions(config, 4096)
    reloaded = type(config).from_dict(json.loads(config.to_json_string()))
    assert reloaded.max_position_embeddings == 4096
    after = RotaryEmbedding(reloaded)
    assert after.frequencies.equal(before.frequencies)
    assert after.attention_scaling == before.attention_scaling


def test_scaling_computed_from_the_positions_is_refused_beyond_them():
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    config = build_config("15m", rope_parameters=rope, max_position_embeddings=128)
    extend_positions(config, 128)
    with pytest.raises(ConfigurationError, match=r"--max_length 256: the model has 128 positions and its dynamic"):
        extend_positions(config, 256)


@pytest.fixture(scope="module")
def short_model(corpus, tmp_path_factory):
    """An HF folder of a model with 24 positions, whose generation_config.json has settings of its own."""
    folder = tmp_path_factory.mktemp("short")
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=24, **SIZES))
    model.save_pretrained(folder)
    load_tokenizer(corpus.tokenizer).save_pretrained(folder)
    return folder


def test_a_prompt_that_leaves_no_room_is_refused(short_model):
    with pytest.raises(ConfigurationError, match=r"--prompt has \d+ tokens with BOS, and the model has 24 positions"):
        generate.main(["--model_path", str(short_model), "--prompt", "many words " * 20])


def test_what_room_there_is_behind_a_prompt_is_told_and_used(short_model, capsys):
    generate.main(["--model_path", str(short_model), "--prompt", "a", "--max_new_tokens", "64", "--temperature", "0"])
    assert "24 positions leave room for" in capsys.readouterr().err
