"""generate.py on what pretrain.py leaves: a save_dir, a step folder, a model folder."""

from __future__ import annotations

import io
import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

import generate
from llama_dyt.core.errors import CheckpointError, ConfigurationError, DataError
from llama_dyt.data.tokenizing.tokenizer import load_tokenizer
from llama_dyt.training.generation.stopping import RepetitionPenalty, cut_at, settled
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


@pytest.fixture(scope="module")
def prompts(corpus, tmp_path_factory):
    """Prompts of different lengths, in a file of lines and in one of records."""
    folder = tmp_path_factory.mktemp("prompts")
    texts = ["class ", "the ", "    def __init__(self, ", "a", "raises ValueError if the "]
    (folder / "lines.txt").write_text("\n".join(texts) + "\n\n")
    (folder / "records.jsonl").write_text("".join(json.dumps({"prompt": text, "id": text}) + "\n" for text in texts))
    return folder


def run(capsys, path, *flags) -> str:
    generate.main(["--model_path", str(path), *flags])
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "more", [[], ["--repetition_penalty", "1.4"], ["--stop", "e"]], ids=["plain", "penalty", "stop"]
)
def test_a_batch_padded_on_the_left_gives_what_prompts_give_one_by_one(pretrained, prompts, capsys, more):
    flags = ["--prompt_file", str(prompts / "lines.txt"), "--temperature", "0", "--max_new_tokens", "24", *more]
    alone = run(capsys, pretrained.save_dir, *flags)
    assert len(alone.split("---\n")) == 5
    assert run(capsys, pretrained.save_dir, *flags, "--batch_size", "3") == alone
    assert run(capsys, pretrained.save_dir, *flags, "--stream") == alone


def test_records_come_back_with_their_continuations(pretrained, prompts, capsys):
    flags = ["--prompt_file", str(prompts / "records.jsonl"), "--json", "--num_samples", "2", *GREEDY]
    lines = [json.loads(line) for line in run(capsys, pretrained.save_dir, *flags).splitlines()]
    assert [line["id"] for line in lines[:4]] == ["class ", "class ", "the ", "the "]
    assert lines[0]["continuation"] == lines[1]["continuation"] and lines[2]["continuation"] == lines[3]["continuation"]


def test_standard_input_is_a_prompt_or_a_line_each(pretrained, capsys, monkeypatch):
    expected = run(capsys, pretrained.save_dir, "--prompt", "a\nb", *GREEDY)
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb"))
    assert run(capsys, pretrained.save_dir, "--prompt", "-", *GREEDY) == expected
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\n"))
    both = run(capsys, pretrained.save_dir, "--prompt", "a", "--prompt", "b", *GREEDY)
    assert run(capsys, pretrained.save_dir, "--prompt_file", "-", *GREEDY) == both


def test_a_continuation_ends_before_a_stop(pretrained, capsys):
    flags = ["--prompt", "class ", "--temperature", "0", "--max_new_tokens", "24"]
    whole = run(capsys, pretrained.save_dir, *flags)[len("class ") : -1]
    stop = whole[5:8]
    expected = "class " + whole[: whole.index(stop)] + "\n"
    assert run(capsys, pretrained.save_dir, *flags, "--stop", stop) == expected
    assert run(capsys, pretrained.save_dir, *flags, "--stop", stop, "--stream") == expected


def test_the_smallest_top_p_is_the_likeliest_token(pretrained, capsys):
    flags = ["--prompt", "class ", "--max_new_tokens", "12"]
    greedy = run(capsys, pretrained.save_dir, *flags, "--temperature", "0")
    assert run(capsys, pretrained.save_dir, *flags, "--temperature", "5", "--top_p", "1e-9") == greedy


def test_a_penalty_is_for_what_was_there_and_not_for_padding():
    scores = torch.tensor([[2.0, -2.0, 4.0, 1.0], [2.0, -2.0, 4.0, 1.0]])
    ids = torch.tensor([[3, 3, 0], [1, 2, 0]])
    penalised = RepetitionPenalty(2.0, torch.tensor([2, 0]))(ids, scores)
    assert penalised.tolist() == [[1.0, -2.0, 4.0, 1.0], [1.0, -4.0, 2.0, 1.0]]


def test_growing_text_is_shown_as_far_as_it_is_settled():
    assert settled("héllo \ufffd", ()) == "héllo "
    assert settled("one two E", ("END",)) == "one two "
    assert settled("one two E", ("three",)) == "one two E"
    assert cut_at("a b c", ("c", "b")) == "a "


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--prompt_file", "nowhere.txt"], "--prompt_file nowhere.txt: cannot be read"),
        (["--prompt_file", "empty.txt"], "--prompt_file empty.txt: holds no prompt"),
        (["--prompt_file", "bad.jsonl"], "bad.jsonl, line 2: has neither a text `prompt` nor `messages`"),
        (["--prompt_file", "chat.jsonl"], "--prompt_file chat.jsonl: holds conversations; add --chat"),
        (["--system", "be brief"], "--system be brief: is for conversations; add --chat"),
        (["--top_p", "0"], "--top_p 0: give more than 0"),
        (["--repetition_penalty", "-1"], "--repetition_penalty -1: give a number above 0"),
        (["--stop", ""], "--stop '': an empty text is everywhere"),
        (["--stream", "--batch_size", "2"], "--stream: shows one text as it grows"),
        (["--num_samples", "0"], "--num_samples 0: give 1 or more"),
    ],
)
def test_wrong_input_is_one_line_beside_the_other_mistakes(tmp_path, monkeypatch, flags, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "p"}\n{"text": "t"}\n')
    talk = [{"role": "user", "content": "hi"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    with pytest.raises(ConfigurationError) as caught:
        generate.main(["--model_path", "anything", "--max_new_tokens", "0", *flags])
    assert len(caught.value.problems) == 2
    assert told in caught.value.problems[1] or told in caught.value.problems[0]


def test_a_chat_without_a_template_is_told(pretrained):
    with pytest.raises(DataError, match="has no chat template"):
        generate.main(["--model_path", str(pretrained.save_dir), "--chat", "--prompt", "hi"])
