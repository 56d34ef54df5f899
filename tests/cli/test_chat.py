"""Fine-tuning on conversations: a template and tokens that the tokenizer lacked, mixtures, packing, resuming."""

from __future__ import annotations

import io
import json
import re
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

import generate
from llama_dyt.config.check import collect_problems
from llama_dyt.config.cli import read
from llama_dyt.data.tokenizing.tokenizer import load_tokenizer
from tests.cli.conftest import VOCAB_SIZE, Run, as_flags, write_lines
from tests.cli.entries import Command
from tests.cli.test_resume import assert_same_checkpoint

NUM_STEPS = 6
TOKENS = ["<|im_start|>", "<|im_end|>"]


def talk(number: int) -> list[dict]:
    return [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": f"thing {number}"},
        {"role": "assistant", "content": "red" if number % 2 else "green"},
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two sources of two shapes, of which one has names of its own, and their mixture."""
    folder = tmp_path_factory.mktemp("chat")
    (folder / "talks.json").write_text(json.dumps([{"messages": talk(number)} for number in range(40)]))
    rows = [{"ask": f"say {number}", "reply": str(number)} for number in range(8)]
    write_lines(folder / "pairs.jsonl", rows)
    columns = "{prompt: ask, completion: reply}"
    lines = [
        "sources:",
        "  talks: {path: talks.json}",
        f"  pairs: {{path: pairs.jsonl, epochs: 2, columns: {columns}}}",
    ]
    (folder / "mixture.yaml").write_text("\n".join(lines))
    return folder


def chat_flags(pretrained, data, **changes):
    flags = {
        "model_path": pretrained.save_dir,
        "dataset": data / "mixture.yaml",
        "chat_template": "chatml",
        "plugin": "zero2",
        "mixed_precision": "fp32",
        "max_length": 128,
        "batch_size": 2,
        "lr": "1e-2",
        "max_steps": NUM_STEPS,
        "save_interval": NUM_STEPS // 2,
        "save_dir": "run",
    }
    return [*as_flags({**flags, **changes}), "--pack"]


@pytest.fixture(scope="module")
def tuned(pretrained, data, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("tuned")
    flags = chat_flags(pretrained, data)
    return Run(folder / "run", flags, Command("finetune", flags, folder).run())


def test_a_mixture_of_shapes_is_packed_and_learned(tuned):
    assert tuned.outcome.status == 0, tuned.outcome.stderr
    told = f"the vocabulary grows from {VOCAB_SIZE} to {VOCAB_SIZE + 2}"
    assert told in tuned.outcome.stderr
    assert "56 examples (0 cut at --max_length 128" in tuned.outcome.stderr
    assert "packed into" in tuned.outcome.stderr
    losses = [json.loads(line)["loss"] for line in (tuned.save_dir / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]


def test_what_is_saved_has_template_tokens_and_rows_that_agree(tuned, pretrained):
    folder = tuned.step(NUM_STEPS) / "model"
    tokenizer = load_tokenizer(folder)
    assert tokenizer.convert_tokens_to_ids(TOKENS) == [VOCAB_SIZE, VOCAB_SIZE + 1]
    assert "<|im_start|>" in tokenizer.chat_template
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) == model.get_input_embeddings().weight.shape[0]
    text = tokenizer.apply_chat_template(talk(0), tokenize=False)
    assert text.endswith("<|im_start|>assistant\ngreen<|im_end|>\n")


def test_new_rows_begin_as_the_mean_of_the_old(pretrained, data, tmp_path):
    flags = chat_flags(pretrained, data, max_steps=1, lr="1e-12", weight_decay=0)
    run = Run(tmp_path / "run", flags, Command("finetune", flags, tmp_path).run())
    assert run.outcome.status == 0, run.outcome.stderr
    before = AutoModelForCausalLM.from_pretrained(sorted(pretrained.save_dir.glob("step_*"))[-1] / "model")
    after = AutoModelForCausalLM.from_pretrained(run.step(1) / "model")
    for part in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(before, part)().weight, getattr(after, part)().weight
        torch.testing.assert_close(new[:VOCAB_SIZE], old, atol=1e-6, rtol=0)
        torch.testing.assert_close(new[VOCAB_SIZE:], old.mean(0).expand(2, -1), atol=1e-6, rtol=0)


def test_a_resumed_run_is_the_same_to_the_last_bit(tuned, tmp_path):
    shutil.copytree(tuned.save_dir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / tuned.step(NUM_STEPS).name)
    outcome = Command("finetune", [*tuned.flags, "--load", "auto"], tmp_path).run()
    assert outcome.status == 0, outcome.stderr
    assert_same_checkpoint(tuned.step(NUM_STEPS), tmp_path / "run" / tuned.step(NUM_STEPS).name)


WRONG = {
    "no template": ({"chat_template": None}, r"has no chat template, .*give one with --chat_template FILE"),
    "a template that is none": ({"chat_template": "chatlm"}, r"--chat_template chatlm: cannot be read .*\(chatml\)"),
    "an unknown column": ({"columns": "promt=ask"}, r"--columns promt=ask: unknown column 'promt'"),
    "an unknown shape": ({"record_shape": "alpca"}, r"unknown record.shape 'alpca': did you mean 'alpaca'"),
}


@pytest.mark.parametrize(("changes", "told"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_error_before_anything_is_written(pretrained, data, tmp_path, changes, told):
    flags = {"dataset": data / "talks.json", **changes}
    outcome = Command("finetune", [f for f in chat_flags(pretrained, data, **flags) if f != "--pack"], tmp_path).run()
    assert outcome.status == 2
    assert len(outcome.errors) == 1, outcome.stderr
    assert re.search(told, outcome.errors[0]), outcome.errors
    assert list(tmp_path.iterdir()) == []


def test_the_model_is_talked_to_by_its_template(tuned, capsys, monkeypatch):
    """A conversation is one turn a line; each turn is asked with all that was said before, in the template's words."""
    flags = ["--model_path", str(tuned.save_dir), "--chat", "--system", "be brief", "--temperature", "0"]
    flags += ["--max_new_tokens", "8"]
    monkeypatch.setattr("sys.stdin", io.StringIO("thing 1\nthing 2\n\nthing 1\n"))
    generate.main(flags)
    first, second, again = capsys.readouterr().out.splitlines()
    assert again == first and "<|im_end|>" not in first + second
    folder = tuned.step(NUM_STEPS) / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), load_tokenizer(folder)
    said = [*talk(1)[:2], {"role": "assistant", "content": first}, {"role": "user", "content": "thing 2"}]
    ids = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    made = model.generate(**ids, max_new_tokens=8, do_sample=False, eos_token_id=end, pad_token_id=end)
    theirs = tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert theirs == second


def test_conversations_of_a_file_are_answered(tuned, data, tmp_path, capsys):
    write_lines(tmp_path / "talks.jsonl", [{"messages": talk(number)} for number in range(3)])
    flags = ["--model_path", str(tuned.save_dir), "--chat", "--prompt_file", str(tmp_path / "talks.jsonl"), "--json"]
    generate.main([*flags, "--temperature", "0", "--max_new_tokens", "4", "--batch_size", "3"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == ["thing 0", "thing 1", "thing 2"]
    assert all("continuation" in line and line["messages"] for line in lines)


def test_what_is_held_out_is_asked_in_the_course_of_the_run(pretrained, data, tmp_path):
    """The answers are those that the checkpoint of the same step gives."""
    asked = {"dataset": data / "talks.json", "validation_fraction": 0.3, "validation_freq": 3, "generate_every": 3}
    asked |= {"num_epochs": 4}
    asked |= {"generate_samples": 3, "generate_tokens": 6, "tensorboard_dir": "tb"}
    flags = chat_flags(pretrained, data, **asked)
    run = Run(tmp_path / "run", flags, Command("finetune", flags, tmp_path).run())
    assert run.outcome.status == 0, run.outcome.stderr
    assert "step 3: 3 prompts continued" in run.outcome.stderr and "of 3 to the letter" in run.outcome.stderr
    records = [record for record in run.metrics if "samples" in record]
    assert [record["step"] for record in records] == [3, 6]
    talks = [sample["prompt"] for sample in records[-1]["samples"]]
    write_lines(tmp_path / "asked.jsonl", [{"messages": [*talk(number)]} for number in range(40)])
    flags = ["--model_path", str(run.step(NUM_STEPS)), "--chat", "--prompt_file", "asked.jsonl", "--json"]
    told = Command("generate", [*flags, "--temperature", "0", "--max_new_tokens", "6"], tmp_path).run()
    texts = {line["prompt"]: line["continuation"] for line in map(json.loads, told.stdout.splitlines())}
    for prompt, sample in zip(talks, records[-1]["samples"], strict=True):
        assert texts[prompt.rpartition("user: ")[2]] == sample["text"]
        assert sample["expected"] in ("red", "green")
    assert list((tmp_path / "tb").iterdir())


def test_answers_that_cannot_be_had_are_told_before_launch():
    told = {
        ("--generate_every", "5"): "--generate_every 5 has nothing to ask",
        ("--generate_every", "5", "--generate_prompts", "nowhere"): "--generate_prompts nowhere: no such file",
        (
            "--generate_every",
            "5",
            "--pp",
            "2",
            "--plugin",
            "hybrid_parallel",
            "--validation_freq",
            "1",
        ): "--pp 2 has them",
        ("--generate_prompts", "x"): "--generate_prompts x has no effect without --generate_every",
    }
    for flags, reason in told.items():
        run, problems = read("finetune", ["--model_path", "m", "--dataset", "d.jsonl", *flags])
        assert any(reason in problem for problem in [*problems, *collect_problems(run, 2, "cpu")]), flags


PARALLEL = {"fsdp": {"plugin": "fsdp"}, "gemini": {"plugin": "gemini"}, "tp": {"plugin": "hybrid_parallel", "tp": 2}}


@pytest.mark.matrix
@pytest.mark.parametrize("changes", PARALLEL.values(), ids=PARALLEL)
def test_answers_are_the_checkpoints_however_weights_are_cut(pretrained, data, tmp_path, changes):
    write_lines(tmp_path / "asked.jsonl", [{"messages": talk(number)} for number in range(4)])
    asked = {"generate_every": NUM_STEPS, "generate_prompts": "asked.jsonl", "generate_tokens": 6, "num_epochs": 4}
    precision = {"mixed_precision": "bf16"} if changes["plugin"] == "gemini" else {}
    flags = chat_flags(pretrained, data, **asked, **precision, **changes)
    run = Run(tmp_path / "run", flags, Command("finetune", flags, tmp_path, "torchrun", 2).run())
    assert run.outcome.status == 0, run.outcome.stderr
    (record,) = [record for record in run.metrics if "samples" in record]
    flags = ["--model_path", str(run.step(NUM_STEPS)), "--chat", "--prompt_file", "asked.jsonl", "--json"]
    told = Command("generate", [*flags, "--temperature", "0", "--max_new_tokens", "6"], tmp_path).run()
    texts = [json.loads(line)["continuation"] for line in told.stdout.splitlines()]
    assert [sample["text"] for sample in record["samples"]] == texts
