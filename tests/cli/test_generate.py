"""generate.py on what pretrain.py leaves: a save_dir, a step folder, a model folder."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM

import generate
from llama_dyt.data.tokenizer import load_tokenizer
from llama_dyt.errors import CheckpointError, DataError
from tests.cli.conftest import NUM_STEPS
from tests.cli.entries import Command

GREEDY = ["--temperature", "0", "--max_new_tokens", "8"]


def test_a_save_dir_gives_text_on_stdout_and_nothing_else(pretrained, tmp_path):
    flags = ["--model_path", pretrained.save_dir, "--prompt", "class ", "--prompt", "the ", *GREEDY]
    outcome = Command("generate", flags, tmp_path).run()
    assert outcome.status == 0, outcome.stderr
    assert outcome.stderr == ""
    first, second = outcome.stdout.split("---\n")
    assert first.startswith("class ") and len(first) > len("class \n")
    assert second.startswith("the ")


@pytest.fixture
def generated(capsys):
    def run(path, *flags) -> str:
        generate.main(["--model_path", str(path), "--prompt", "class ", *flags])
        return capsys.readouterr().out

    return run


def test_a_save_dir_means_its_newest_checkpoint(pretrained, generated):
    newest = pretrained.step(NUM_STEPS)
    assert generated(pretrained.save_dir, *GREEDY) == generated(newest, *GREEDY) == generated(newest / "model", *GREEDY)


def test_a_step_folder_is_continued_as_transformers_does(pretrained, generated):
    folder = pretrained.step(NUM_STEPS // 2) / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), load_tokenizer(folder)
    ids = tokenizer("class ", return_tensors="pt")["input_ids"]
    assert ids[0, 0] == tokenizer.bos_token_id
    expected = tokenizer.decode(model.generate(ids, max_new_tokens=8, do_sample=False)[0], skip_special_tokens=True)
    assert generated(pretrained.step(NUM_STEPS // 2), *GREEDY) == expected + "\n"


def test_draws_depend_on_the_seed_alone(pretrained, generated):
    texts = [generated(pretrained.save_dir, "--max_new_tokens", "16", "--seed", seed) for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


def test_a_folder_without_a_model_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"--model_path .*: no complete checkpoint .*; give a folder"):
        generate.main(["--model_path", str(tmp_path)])
    with pytest.raises((CheckpointError, DataError), match=r"--model_path .*nowhere: no such folder"):
        generate.main(["--model_path", str(tmp_path / "nowhere")])
