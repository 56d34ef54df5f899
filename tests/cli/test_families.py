"""Other families than LLaMA through the entries: from transformers' own folder to one of them, and sized up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GemmaConfig, MistralConfig, PhiConfig

import pretrain
from llama_dyt.models import load_pretrained
from tests.cli.conftest import VOCAB_SIZE, Corpus, as_flags
from tests.cli.entries import Command, Outcome, run_two_at_once
from tests.cli.test_resume import assert_same_checkpoint

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "mistral": MistralConfig(**SHAPE, sliding_window=9),
    "gemma": GemmaConfig(**SHAPE, head_dim=16),
    "phi": PhiConfig(**SHAPE, partial_rotary_factor=0.5),
}


def flags(corpus: Corpus, name: str, save_dir: str, **changes) -> list[str]:
    given = {
        "model_path": name,
        "dataset": corpus.train,
        "tokenizer": corpus.tokenizer,
        "plugin": "zero2",
        "mixed_precision": "fp32",
        "max_length": 32,
        "max_steps": 2,
        "save_interval": 1,
        "warmup_steps": 1,
        "lr": "1e-2",
        "tensorboard_dir": "none",
        "save_dir": save_dir,
    }
    return as_flags({**given, **changes})


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory) -> tuple[Path, dict[str, Outcome]]:
    """Two steps of each family from a folder of transformers' own; then the second again from what the first saved."""
    folder = tmp_path_factory.mktemp("families")
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
    commands = [Command("pretrain", flags(corpus, name, f"run_{name}"), folder) for name in CONFIGS]
    outcomes = dict(zip(CONFIGS, run_two_at_once(*commands)))
    shutil.copytree(folder / "run_gemma", folder / "half")
    shutil.rmtree(folder / "half/step_00000002")
    resumed = Command("pretrain", flags(corpus, "gemma", "half", load="auto"), folder)
    outcomes["resumed"] = resumed.run()
    return folder, outcomes


@pytest.mark.parametrize("name", CONFIGS)
def test_a_plain_folder_is_trained_and_saved_as_a_plain_folder(runs, name):
    folder, outcomes = runs
    assert outcomes[name].status == 0, outcomes[name].stderr
    saved = folder / f"run_{name}/step_00000002/model"
    assert json.loads((saved / "config.json").read_text())["model_type"] == name and not list(saved.glob("*.py"))
    model, report = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert type(model).__module__.startswith("transformers.models.")
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = torch.arange(3, 35)[None]
    torch.testing.assert_close(model.eval()(ids).logits, load_pretrained(saved).eval()(ids).logits, rtol=0, atol=1e-5)


def test_a_run_is_resumed_from_a_plain_folder_to_the_last_bit(runs):
    folder, outcomes = runs
    assert outcomes["resumed"].status == 0, outcomes["resumed"].stderr
    assert_same_checkpoint(folder / "half/step_00000002", folder / "run_gemma/step_00000002")


@pytest.mark.parametrize(
    ("config", "norm", "parameters"),
    [("gemma_2b", "unit_offset_rmsnorm", 2_506_172_416), ("phi_2", "layernorm", 2_779_683_840)],
)
def test_a_dry_run_has_the_exact_size(config, norm, parameters, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = ["--config", config, "--norm", norm, "--dataset", "synthetic", "--max_steps", "1", "--dry_run"]
    monkeypatch.setattr("sys.argv", ["pretrain.py", *words, "--plugin", "zero2", "--max_length", "64"])
    pretrain.main()
    assert f"# parameters      {parameters:,}\n" in capsys.readouterr().out
