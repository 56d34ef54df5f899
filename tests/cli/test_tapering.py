"""A trained model's norms exchanged one after the other, from convert.py to convert.py, and gone on with in between."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file

from llama_dyt.data.tokenizing.tokenizer import load_tokenizer
from llama_dyt.models import build_config, build_model
from llama_dyt.training.trackers.jsonl import read_metrics
from tests.cli.conftest import as_flags
from tests.cli.entries import Command

SAVED, TOTAL = 3, 6


def ended(folder, entry, **flags):
    outcome = Command(entry, as_flags(flags), folder).run()
    assert outcome.status == 0, outcome.stderr
    return outcome.stdout + outcome.stderr


def test_norms_become_dynamic_tanh_and_a_run_goes_on_in_their_midst(corpus, tmp_path):
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = build_config("15m", "rmsnorm", **size, intermediate_size=64, vocab_size=512, max_position_embeddings=64)
    build_model(config, seed=1).save_pretrained(tmp_path / "own")
    load_tokenizer(str(corpus.tokenizer)).save_pretrained(tmp_path / "own")
    text = {"calibrate": corpus.train, "calibration_tokens": 512}
    said = ended(tmp_path, "convert", input_path="own", output_path="tapered", norm="tapered", **text)
    assert "Norms exchanged for tapered, fitted on 512 tokens" in said

    flags = {"model_path": "tapered", "dataset": corpus.train, "plugin": "zero2", "mixed_precision": "fp32"}
    flags |= {
        "max_length": 32,
        "max_steps": TOTAL,
        "warmup_steps": 1,
        "save_interval": SAVED,
        "tensorboard_dir": "none",
    }
    flags |= {"taper_steps": 4, "taper_start": 1, "distill_from": "own", "distill_hidden_weight": 1}
    ended(tmp_path, "pretrain", **flags, save_dir="run")
    progress = [record["taper_progress"] for record in read_metrics(tmp_path / "run/metrics.jsonl")]
    assert progress == sorted(progress) and progress[0] == 0 and progress[4:] == [1, 1] and 0 < progress[2] < 1
    ended(tmp_path, "pretrain", **flags, save_dir="again", load="run/step_00000003")
    whole, again = (load_file(tmp_path / name / "step_00000006/model/model.safetensors") for name in ("run", "again"))
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)

    # Without the schedule the gates stay where the checkpoint has them, not where --model_path has.
    flags = {name: value for name, value in flags.items() if not name.startswith("taper_")}
    said = ended(tmp_path, "pretrain", **{**flags, "max_steps": 4}, save_dir="still", load="run/step_00000003")
    assert "of the model's 5 norms have not become dyt and stay as they are" in said
    gates = [
        json.loads((tmp_path / name / "model/config.json").read_text())["taper_gates"]
        for name in ("run/step_00000003", "still/step_00000004")
    ]
    assert gates[0] == gates[1] and any(0 < gate < 1 for gate in gates[0])

    said = ended(tmp_path, "convert", input_path="run", output_path="plain", norm="dyt")
    assert "The 5 norms have become dyt" in said
    assert json.loads((tmp_path / "plain/config.json").read_text())["norm_type"] == "dyt"
    assert not (set(load_file(tmp_path / "plain/model.safetensors")) - {n.replace("tanh_", "") for n in whole})
