"""Wrong input, each as the entry meets it when it makes its plan: a line a problem, with the value and what to do.

In this process, because a plan needs no process group and a program's start costs seconds. That the entries turn these
errors into messages and exit statuses is in test_failures.py.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.training.plan import make_plan
from tests.cli.conftest import NUM_STEPS, write_lines


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The working directory, with inputs that are wrong in one way each."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty_folder").mkdir()
    (tmp_path / "a_file").write_text("text")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    (tmp_path / "broken.jsonl").write_text('{"text": "half\n{"text": "whole"}\n')
    (tmp_path / "without_text.jsonl").write_text('{"txt": "misspelt"}\n')
    (tmp_path / "not_text.parquet").write_bytes(b"PAR1, but not for long")
    (tmp_path / "table.xls").write_text("text\n")
    return tmp_path


def problems_of(flags: list[str], place: Path, kind: str = "pretrain") -> list[str]:
    """What `make_plan` complains about, having left nothing behind."""
    before = sorted(place.rglob("*"))
    with pytest.raises(ConfigurationError) as caught:
        make_plan(kind, flags)
    assert sorted(place.rglob("*")) == before, "something was left behind"
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


# name: (changed flags, processes, what each expected problem must say)
ONE_PROBLEM = {
    "unknown flag": ({"warm_up_steps": 3}, 1, "unknown flag '--warm_up_steps': did you mean '--warmup_steps'"),
    "unknown plugin": ({"plugin": "zero3"}, 1, "--plugin: unknown plugin 'zero3': did you mean 'zero1'"),
    "unknown size": ({"config": "7x"}, 1, "--config: unknown model size '7x'.*known: .*llama2_7b.*or the path of"),
    "unknown precision": ({"mixed_precision": "int8"}, 1, "'int8'.*known: fp16, bf16, fp32"),
    "value of the wrong type": ({"max_length": "long"}, 1, "--max_length: 'long' is not a whole number"),
    "flag of another entry": ({"num_steps": 3}, 1, "--num_steps is a flag of benchmark.py, not of pretrain.py"),
    "config file missing": ({"config_file": "no.yaml"}, 1, "--config_file no.yaml: cannot be read"),
    "dataset missing": ({"dataset": "no.jsonl"}, 1, "--dataset no.jsonl: no such file or folder; check the path"),
    "dataset unknown": ({"dataset": "nowhere/such_set"}, 1, "--dataset 'nowhere/such_set' is no local path.*sample"),
    "dataset empty": ({"dataset": "empty.jsonl"}, 1, "--dataset empty.jsonl: .*empty; give a dataset with text"),
    "dataset of blank lines": ({"dataset": "blank.jsonl"}, 1, "--dataset blank.jsonl: holds no usable record"),
    "dataset folder empty": ({"dataset": "empty_folder"}, 1, "--dataset empty_folder: .*no .jsonl.*name a folder"),
    "dataset of no known format": ({"dataset": "table.xls"}, 1, "--dataset table.xls: not a format.*give .jsonl"),
    "dataset unreadable": ({"dataset": "not_text.parquet"}, 1, "not_text.parquet.*not a valid parquet file.*again"),
    "first line broken": ({"dataset": "broken.jsonl"}, 1, "broken.jsonl, line 1: is not valid JSON.*--skip_bad_lines"),
    "first line without text": (
        {"dataset": "without_text.jsonl"},
        1,
        "without_text.jsonl, line 1: has no field 'text'; its records have txt .str.: name the one to read",
    ),
    "tokenizer missing": ({"tokenizer": "./no_such"}, 1, "tokenizer ./no_such: no such file or folder; give --tok"),
    "tokenizer folder empty": ({"tokenizer": "empty_folder"}, 1, "tokenizer empty_folder: .*holds no tokenizer; give"),
    "tokenizer damaged": ({"tokenizer": "a_file"}, 1, "tokenizer a_file: cannot be loaded.*give --tokenizer"),
    "load missing": ({"load": "no_such"}, 1, "--load no_such: no such folder; give a checkpoint"),
    "nothing to load": ({"load": "empty_folder"}, 1, "--load empty_folder: no complete checkpoint.*give a folder"),
    "model_path without a model": (
        {"model_path": "empty_folder", "by_hand": False},
        1,
        "--model_path empty_folder: no config.json and no complete checkpoint in it; give an HF folder",
    ),
    "max_length below 2": ({"max_length": 1}, 1, "--max_length 1: give 2 or more"),
    "batch_size 0": ({"batch_size": 0}, 1, "--batch_size 0: give 1 or more"),
    "batch not divisible": (
        {"plugin": "3d", "pp": 2, "batch_size": 3, "mbs": 2},
        2,
        "--batch_size 3 is not divisible by --mbs 2; give a multiple of 2",
    ),
    "tp not dividing the heads": (
        {"plugin": "3d", "tp": 3},
        3,
        "--tp 3 does not divide the model's 4 attention heads.*give a number that does",
    ),
    "pp over the layers": (
        {"plugin": "3d", "pp": 4, "batch_size": 4},
        4,
        "--pp 4 is more than the model's 2 layers; give at most 2",
    ),
    "tp and pp not dividing the processes": (
        {"plugin": "3d", "tp": 2},
        3,
        "--tp 2 times --pp 1 is 2, which does not divide the 3 processes; launch a multiple of 2",
    ),
    "gemini in fp32": ({"plugin": "gemini"}, 1, "--mixed_precision fp32: --plugin gemini has fp16 and bf16 only"),
    "hybrid zero in fp32": (
        {"plugin": "hybrid_parallel", "zero": 1},
        1,
        "--mixed_precision fp32 with --zero 1: in fp32 --plugin hybrid_parallel has stage 0; give that",
    ),
    "tp without a plugin for it": (
        {"tp": 2},
        2,
        "--tp 2: --plugin zero2 has no tensor parallelism; take",
    ),
    "save_dir below a file": (
        {"save_dir": "a_file/run"},
        1,
        "--save_dir a_file/run: .*is a file; give a folder",
    ),
    "tensorboard_dir below a file": ({"tensorboard_dir": "a_file/tb"}, 1, "--tensorboard_dir a_file/tb: .*is a file"),
}


@pytest.mark.parametrize("name", ONE_PROBLEM)
def test_each_mistake_is_one_line_with_its_remedy(name, corpus, place, monkeypatch):
    changes, processes, expected = ONE_PROBLEM[name]
    if processes > 1:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", str(processes))
    changes = dict(changes)
    by_hand = changes.pop("by_hand", True)
    flags = corpus.pretrain_flags(**{"save_dir": "run", **changes})
    (problem,) = problems_of(flags if by_hand else flags[flags.index("--dataset") :], place)
    assert re.search(expected, problem), problem


def test_several_mistakes_are_told_together(corpus, place):
    flags = corpus.pretrain_flags(plugin="zeroo", dataset="no.jsonl", save_dir="a_file/run", typo=1)
    problems = problems_of(flags, place)
    for value in ("'--typo'", "'zeroo'", "a_file/run", "no.jsonl"):
        assert sum(value in problem for problem in problems) == 1, problems
    assert len(problems) == 4


def test_a_flag_that_cannot_be_read_is_not_judged_by_its_default(corpus, place):
    """The default plugin has no fp32; who asked for another must not be told so."""
    (problem,) = problems_of(corpus.pretrain_flags(plugin="zeroo", save_dir="run"), place)
    assert "gemini has" not in problem


def test_skip_bad_lines_holds_from_the_first_line_on(corpus, place):
    plan = make_plan("pretrain", [*corpus.pretrain_flags(dataset="broken.jsonl", save_dir="run"), "--skip_bad_lines"])
    assert plan.dataset == "broken.jsonl"


def test_finetuning_needs_a_model_and_prompts(corpus, place):
    flags = ["--dataset", str(corpus.train), "-p", "zero2", "-x", "fp32", "-o", "run"]
    prompts, model = sorted(problems_of(flags, place, kind="finetune"))
    assert re.search("--model_path is needed: give", model)
    assert re.search("line 1: has no field 'prompt'", prompts)


@pytest.fixture
def save_dir(pretrained, place) -> Path:
    """A copy of a finished run's folder, to be damaged."""
    return Path(shutil.copytree(pretrained.save_dir, place / "run"))


def last_step(save_dir: Path) -> Path:
    return save_dir / f"step_{NUM_STEPS:08d}"


def test_a_folder_that_holds_a_run_is_not_written_over(corpus, place, save_dir):
    (problem,) = problems_of(corpus.pretrain_flags(save_dir="run"), place)
    assert re.search("--save_dir run already holds a run .*--load auto.*another --save_dir", problem)


def test_an_incomplete_checkpoint_is_skipped_with_a_warning(corpus, place, save_dir):
    (last_step(save_dir) / "COMPLETE").unlink()
    plan = make_plan("pretrain", corpus.pretrain_flags(save_dir="run", load="auto"))
    assert plan.checkpoint.step == NUM_STEPS // 2
    (warning,) = plan.warnings
    assert re.search(f"skipping incomplete checkpoint .*step_{NUM_STEPS:08d}.*no COMPLETE marker", warning)


def test_an_incomplete_checkpoint_named_by_its_path_is_refused(corpus, place, save_dir):
    (last_step(save_dir) / "COMPLETE").unlink()
    (problem,) = problems_of(corpus.pretrain_flags(save_dir="new", load=last_step(save_dir)), place)
    assert re.search(r"--load .*: incomplete checkpoint, it has no COMPLETE marker.*load an earlier step", problem)


@pytest.mark.parametrize("file", ["model/model.safetensors", "optimizer/optimizer.safetensors", "trainer_state.json"])
def test_a_truncated_checkpoint_is_refused_and_skipped(file, corpus, place, save_dir):
    path = last_step(save_dir) / file
    path.write_bytes(path.read_bytes()[:-100])
    (problem,) = problems_of(corpus.pretrain_flags(save_dir="new", load=last_step(save_dir)), place)
    assert re.search(rf"{file} has \d+ bytes, \d+ were written", problem)
    plan = make_plan("pretrain", corpus.pretrain_flags(save_dir="run", load="auto"))
    assert plan.checkpoint.step == NUM_STEPS // 2


def test_a_damaged_checkpoint_is_refused_before_anything_starts(corpus, place, save_dir):
    path = last_step(save_dir) / "model" / "model.safetensors"
    path.write_bytes(bytes(path.stat().st_size))
    (problem,) = problems_of(corpus.pretrain_flags(save_dir="new", load=last_step(save_dir)), place)
    assert "model.safetensors" in problem


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_layers": 3}, "has no parameter model.layers.2.*give the --config"),
        ({"num_layers": 1}, "has parameter model.layers.1.*lacks; give the --config"),
        ({"hidden_width": 64}, r"holds model.embed_tokens.weight of shape \[512, 32\].*\[512, 64\]; give"),
        ({"norm": "rmsnorm"}, "has parameter .*lacks; give the --config and --norm"),
    ],
)
def test_a_checkpoint_of_another_size_is_refused(changes, expected, corpus, place, save_dir):
    flags = corpus.pretrain_flags(save_dir="new", load="run", **changes)
    (problem,) = problems_of(flags, place)
    assert re.search(expected, problem), problem


def test_another_vocabulary_than_the_checkpoints_is_refused(corpus, place, save_dir):
    tokenizer = Path(shutil.copytree(corpus.tokenizer, place / "larger"))
    description = json.loads((tokenizer / "tokenizer.json").read_text())
    token = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    description["added_tokens"].append({"id": 512, "content": "another", **token})
    (tokenizer / "tokenizer.json").write_text(json.dumps(description))
    (problem,) = problems_of(corpus.pretrain_flags(save_dir="new", load="run", tokenizer="larger"), place)
    assert re.search(r"\[512, 32\].*\[513, 32\]; give the .*--tokenizer it was trained with", problem)
    flags = ["-d", str(corpus.train), "-p", "zero2", "-x", "fp32", "-l", "32", "-o", "new", "--max_steps", "1"]
    (problem,) = problems_of([*flags, "--model_path", "run", "--tokenizer", "larger"], place)
    assert re.search("the tokenizer has 513 pieces but the model's vocabulary is 512; give --tokenizer", problem)


@pytest.mark.parametrize("warmup_steps", [NUM_STEPS, 2000])
def test_a_warm_up_as_long_as_the_run_is_warned_about(warmup_steps, corpus, place):
    plan = make_plan("pretrain", corpus.pretrain_flags(save_dir="run", warmup_steps=warmup_steps))
    (warning,) = plan.warnings
    assert f"--warmup_steps {warmup_steps} is not shorter than the run of {NUM_STEPS} steps" in warning
    assert "such as --warmup_steps 1" in warning


def test_a_sentence_in_place_of_a_record_is_a_bad_line(corpus, place):
    write_lines(place / "strings.jsonl", ["only a string"])
    (problem,) = problems_of(corpus.pretrain_flags(dataset="strings.jsonl", save_dir="run"), place)
    assert "strings.jsonl, line 1: is a JSON str, not an object" in problem


def test_one_token_for_both_ends_of_a_document_cannot_keep_documents_apart(corpus, place):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(corpus.tokenizer)
    tokenizer.bos_token = tokenizer.eos_token
    tokenizer.save_pretrained(place / "one_end")
    flags = corpus.pretrain_flags(tokenizer=place / "one_end")
    make_plan("pretrain", flags)
    (problem,) = problems_of([*flags, "--reset_attention_mask"], place)
    assert problem.startswith(
        "--reset_attention_mask: the tokenizer has one token for both ends of a document ('</s>')"
    )
