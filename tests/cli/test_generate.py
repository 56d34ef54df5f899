"""generate.py on what pretrain.py leaves: a save_dir, a step folder, a model folder."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import AutoModelForCausalLM

import generate
from llama_dyt.core.errors import CheckpointError, ConfigurationError, DataError
from llama_dyt.data.tokenizing.tokenizer import load_tokenizer
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


def test_flags_overrule_a_folders_generation_config(pretrained, generated, tmp_path):
    """Also settings that have no flag here: what was asked for is the likeliest token, or a draw from all of them."""
    plain, opinionated = tmp_path / "plain", tmp_path / "opinionated"
    for folder in (plain, opinionated):
        shutil.copytree(pretrained.step(NUM_STEPS) / "model", folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
    opinions = {
        "do_sample": True,
        "temperature": 0.1,
        "top_k": 1,
        "top_p": 0.1,
        "repetition_penalty": 5.0,
        "no_repeat_ngram_size": 1,
        "max_length": 3,
        "num_beams": 3,
        "eos_token_id": list(range(3, 300)),
    }
    (opinionated / "generation_config.json").write_text(json.dumps(opinions))
    for flags in (GREEDY, ["--temperature", "2", "--top_k", "300", "--max_new_tokens", "16"]):
        assert generated(opinionated, *flags) == generated(plain, *flags)


@pytest.mark.parametrize("temperature", ["nan", "inf", "-0.5", "1e-09"])
def test_bad_temperatures_are_refused(temperature):
    with pytest.raises(ConfigurationError, match=f"--temperature {temperature}: give 0"):
        generate.main(["--model_path", "anything", f"--temperature={temperature}"])


def test_mistakes_are_told_together():
    with pytest.raises(ConfigurationError) as caught:
        generate.main(["--model_path", "anything", "--temperature", "nan", "--top_k", "0", "--seed", str(2**64)])
    assert len(caught.value.problems) == 3
