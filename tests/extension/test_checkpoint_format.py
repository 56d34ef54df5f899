"""A checkpoint format in one file outside of the package (`npz_checkpoint.py`) is written, found out and read."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from llama_dyt.models import build_config, build_model
from tests.cli.entries import Command
from tests.forks import run


def test_a_users_format_is_converted_to_and_from(tmp_path):
    shutil.copy(Path(__file__).with_name("npz_checkpoint.py"), tmp_path / "my_npz.py")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    build_model(build_config("15m", **sizes, vocab_size=60), seed=0).save_pretrained(tmp_path / "hf")
    flags = ["--import", "my_npz", "--verify"]
    there = Command("convert", ["-i", "hf", "-o", "npz", "--to", "npz", *flags], tmp_path).run()
    assert there.status == 0 and "verified: largest difference" in there.stdout, there.stderr
    back = Command("convert", ["-i", "npz", "-o", "again", *flags], tmp_path).run()
    assert back.status == 0 and "npz: a model in my own form, " in back.stdout, back.stderr
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "again"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    without = Command("convert", ["-i", "hf", "-o", "other", "--to", "npz"], tmp_path).run()
    assert without.errors == [
        "--to: unknown to 'npz' (known: ours, meta, hf); one of your own is brought in by --import its.module"
    ]


SAVE = """
import sys
from llama_dyt.core import extensions
module, size, norm = sys.argv[1:]
assert not extensions.load([module])
from llama_dyt.models import build_config, build_model, save_config
sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 60}
config = build_config(size, norm, **sizes)
build_model(config, seed=0).save_pretrained("saved")
save_config(config, "saved")
"""


def test_a_model_with_a_users_norm_is_converted_with_the_norms_file(tmp_path):
    shutil.copy(Path(__file__).with_name("dyisru.py"), tmp_path / "my_norm.py")
    assert run(["-c", SAVE, "my_norm", "15m", "dyisru"], cwd=tmp_path).returncode == 0
    flags = ["-i", "saved", "-o", "result", "--dtype", "bf16", "--verify"]
    without = Command("convert", flags, tmp_path).run()
    assert len(without.errors) == 1 and "give --import my_norm, where Python finds it" in without.stderr
    outcome = Command("convert", [*flags, "--import", "my_norm"], tmp_path).run()
    assert outcome.status == 0 and "verified: largest difference" in outcome.stdout, outcome.stderr
    assert (tmp_path / "result/my_norm.py").read_bytes() == (tmp_path / "saved/my_norm.py").read_bytes()
    refused = Command("convert", [*flags[:2], "-o", "folded", "--fold_dyt", "--import", "my_norm"], tmp_path).run()
    assert refused.errors == ["--fold_dyt: the model has norm dyisru, which cannot do without its weight; leave it out"]


def test_a_model_of_a_users_family_is_converted_and_folded(tmp_path):
    shutil.copy(Path(__file__).with_name("two_matrix_family.py"), tmp_path / "my_family.py")
    saved = run(["-c", SAVE, "my_family", "two_matrix_tiny", "dyt"], cwd=tmp_path)
    assert saved.returncode == 0, saved.stderr
    flags = ["-i", "saved", "--import", "my_family", "--verify"]
    outcome = Command("convert", [*flags, "-o", "result", "--fold_dyt"], tmp_path).run()
    assert outcome.status == 0 and "Weights of 3 norms folded" in outcome.stdout, outcome.stderr
    assert (tmp_path / "result/my_family.py").is_file()
    refused = Command("convert", [*flags, "-o", "meta", "--to", "meta"], tmp_path).run()
    assert len(refused.errors) == 1 and "--to meta: Meta's code knows plain LLaMAs alone" in refused.errors[0]
