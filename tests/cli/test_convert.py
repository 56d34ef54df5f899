"""convert.py on what pretrain.py leaves, as a user starts it; and its result as a user goes on from it."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

import generate
from llama_dyt.core.errors import EXIT_STATUS
from tests.cli.conftest import NUM_STEPS
from tests.cli.entries import Command

TOKENS = torch.arange(3, 20)[None]


def convert(folder, *flags):
    return Command("convert", list(map(str, flags)), folder).run()


@torch.no_grad()
def logits(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(TOKENS).logits


@pytest.fixture(scope="module")
def exported(pretrained, tmp_path_factory):
    """(folder, what was said) of a --save_dir, converted in bf16 and verified."""
    folder = tmp_path_factory.mktemp("exported")
    flags = ["--input_path", pretrained.save_dir, "--output_path", "model", "--dtype", "bf16", "--verify"]
    outcome = convert(folder, *flags)
    assert outcome.status == 0, outcome.stderr
    return folder / "model", outcome.stdout


def test_a_save_dir_becomes_a_folder_with_card_and_picture(exported, pretrained):
    folder, said = exported
    assert "run: a checkpoint of ours, " in said and "verified: largest difference of logits" in said
    card = (folder / "README.md").read_text(encoding="utf-8")
    last = [record for record in pretrained.metrics if "loss" in record][-1]
    for line in (f"| step | {NUM_STEPS} |", f"| loss | {last['loss']:.6g} |", "| `plugin` | zero2 |", "loss.png"):
        assert line in card, card
    assert (folder / "loss.png").read_bytes() == (pretrained.save_dir / "loss.png").read_bytes()
    model = AutoModelForCausalLM.from_pretrained(pretrained.step(NUM_STEPS) / "model")
    with torch.no_grad():
        expected = model.to(torch.bfloat16).float()(TOKENS).logits
    torch.testing.assert_close(logits(folder), expected, rtol=0, atol=1e-5)


def test_the_result_writes_text_and_is_trained_on(exported, corpus, tmp_path, capsys):
    folder, _ = exported
    generate.main(["--model_path", str(folder), "--prompt", "class ", "--max_new_tokens", "4", "--temperature", "0"])
    assert capsys.readouterr().out.startswith("class ")
    flags = ["--dataset", corpus.train, "--model_path", folder, "--plugin", "zero2", "--mixed_precision", "fp32"]
    flags += ["--max_length", "32", "--max_steps", "1", "--save_dir", "run"]
    outcome = Command("pretrain", flags, tmp_path).run()
    assert outcome.status == 0, outcome.stderr
    assert (tmp_path / "run/step_00000001/COMPLETE").is_file()


def test_a_step_folder_and_its_model_mean_that_step(pretrained, tmp_path):
    step = pretrained.step(NUM_STEPS // 2)
    for number, source in enumerate((step, step / "model")):
        outcome = convert(tmp_path, "-i", source, "-o", f"model{number}", "--fold_dyt")
        assert outcome.status == 0, outcome.stderr
        torch.testing.assert_close(logits(tmp_path / f"model{number}"), logits(step / "model"), rtol=0, atol=1e-5)
        assert f"| step | {NUM_STEPS // 2} |" in (tmp_path / f"model{number}/README.md").read_text()


def test_a_damaged_checkpoint_is_named_and_nothing_is_left(pretrained, tmp_path):
    step = tmp_path / "step_00000012"
    shutil.copytree(pretrained.step(NUM_STEPS), step)
    weights = step / "model/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    outcome = convert(tmp_path, "-i", step, "-o", "result")
    assert outcome.status == EXIT_STATUS and len(outcome.errors) == 1
    assert "model/model.safetensors holds other bytes than were written" in outcome.errors[0]
    weights.write_bytes(content[:-100])
    outcome = convert(tmp_path, "-i", step, "-o", "result")
    assert outcome.status == EXIT_STATUS and len(outcome.errors) == 1 and "incomplete checkpoint" in outcome.errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000012"]


def test_what_is_wrong_with_a_command_line_is_told_at_once(tmp_path):
    outcome = convert(tmp_path, "--form", "hf", "--dtype", "fp8", "--verifi")
    assert outcome.status == EXIT_STATUS and outcome.stdout == ""
    assert sorted(line.split(":")[0] for line in outcome.errors) == [
        "--dtype",
        "--input_path",
        "--output_path",
        "unknown flag '--form'",
        "unknown flag '--verifi'",
    ]
