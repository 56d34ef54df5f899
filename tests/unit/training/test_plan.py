"""The stages of a plan, one by one: what each adds to what is wrong, and that none judges again what another has."""

import pytest

from llama_dyt.config import Owned
from llama_dyt.config import run as run_module
from llama_dyt.core.errors import ConfigurationError, DataError
from llama_dyt.core.problem import Problem
from llama_dyt.training.plan import make_plan
from llama_dyt.training.plan.answer import answer
from llama_dyt.training.plan.check import Found, check
from llama_dyt.training.plan.datasets import dataset_problems, look_at_datasets
from llama_dyt.training.plan.parse import parse

RUN = ["-c", "15m", "-p", "zero2", "--mixed_precision", "fp32"]
GEMINI_IN_FP32 = "--mixed_precision fp32: --plugin gemini has fp16 and bf16 only"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def fail(error):
    raise error


def test_problems_are_gathered_once_each_and_told_together():
    found = Found()
    found.add("a")
    assert found.attempt(lambda: 3) == 3
    assert found.attempt(lambda: fail(ConfigurationError(["a", "b"]))) is None
    assert found.attempt(lambda: fail(DataError("c"))) is None
    with pytest.raises(ConfigurationError) as caught:
        found.raise_if_any()
    assert caught.value.problems == ["a", "b", "c"]


@pytest.mark.parametrize("dry", [False, True])
def test_what_follows_from_this_machine_does_not_stop_a_dry_run(dry):
    found = Found(dry)
    found.add(Problem("tp", 3, "is odd"))
    found.add(Problem("dataset", "x", "is not here", local=True))
    found.attempt(lambda: fail(DataError("no tokenizer")), local=True)
    local = ["--dataset x: is not here", "no tokenizer"]
    assert found.problems == ["--tp 3: is odd", *([] if dry else local)]
    assert found.in_passing == (local if dry else [])


def test_a_device_that_a_dry_run_lacks_is_told_in_passing():
    words = ["-p", "gemini", "-x", "fp32", "--tp", "3"]
    found = check(parse("pretrain", words)).found
    assert [problem.flag for problem in found.problems] == ["mixed_precision", "tp", "tp"]
    checked = check(parse("pretrain", [*words, "--dry_run", "--dry_run_processes", "6"]))
    assert checked.environment.world_size == 6
    assert [problem.flag for problem in checked.found.problems] == ["tp"], "3 does not divide the heads"
    (passing,) = checked.found.in_passing
    assert passing.startswith(GEMINI_IN_FP32)


@pytest.mark.parametrize("words", [["-p", "zeroo"], ["--config_file", "recipe.yaml"]], ids=["flag", "key"])
def test_what_follows_from_the_default_of_a_flag_that_cannot_be_read_was_not_asked_for(place, words):
    (place / "recipe.yaml").write_text("plugin: zeroo\n")
    asked = parse("pretrain", [*words, "-x", "fp32"])
    assert asked.run.booster.plugin == "gemini", "the default, which has no fp32"
    (problem,) = check(asked).found.problems
    assert "unknown plugin 'zeroo'" in problem


def test_an_entry_and_its_plan_judge_flags_once(monkeypatch):
    judged = []
    monkeypatch.setattr(run_module, "_declared", [Owned({}, lambda *where: judged.append(where) or iter(()))])
    checked = answer("benchmark", [*RUN, "--num_layers", "1"])
    plan = make_plan("benchmark", checked=checked)
    assert plan.run is checked.run and plan.run.booster.plugin == "zero2"
    assert len(judged) == 1


def test_datasets_are_looked_at_once(place):
    (place / "text.jsonl").write_text('{"text": "some"}\n')
    checked = check(parse("pretrain", ["-d", "text.jsonl", *RUN[:-2], "-x", "fp32"]))
    assert checked.missing is None
    assert look_at_datasets(checked) == []
    (place / "text.jsonl").unlink()
    assert look_at_datasets(checked) == [] and checked.found.problems == []


def test_a_problem_of_a_dataset_has_the_flag_that_names_it():
    words = ["-d", "no.jsonl", "--validation_freq", "2", "--validation_dataset", "nowhere/at/all"]
    problems = dataset_problems(parse("pretrain", words).run)
    assert [problem.flag for problem in problems] == ["dataset", "validation_dataset"]
    assert all(problem.local for problem in problems)
    assert problems[0].startswith("--dataset no.jsonl: no such file or folder")
    (prompts,) = dataset_problems(parse("finetune", ["-d", "sample"]).run)
    assert prompts == "--dataset sample is plain text without prompts; give a file of prompt/completion JSON lines"


def test_the_head_of_an_entry_ends_with_all_that_flags_and_data_make_wrong(capsys):
    with pytest.raises(SystemExit) as end:
        answer("pretrain", ["-p", "gemini", "-x", "fp32", "-d", "no.jsonl", "--lr", "0"])
    assert end.value.code == 2
    shown = capsys.readouterr().err.splitlines()
    assert [line.split(" ")[0] for line in shown] == ["error:", "--dataset"]
    assert shown[0] == "error: --lr 0.0: give more than 0"


def test_a_launched_process_leaves_the_telling_to_its_plan(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    checked = answer("pretrain", ["-p", "gemini", "-x", "fp32"])
    (problem,) = checked.found.problems
    assert problem.startswith(GEMINI_IN_FP32) and checked.missing is None
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert answer("pretrain", []) is None
    with pytest.raises(ConfigurationError, match="environment variable WORLD_SIZE is 'two'"):
        make_plan("pretrain", [])


def test_a_module_whose_flags_are_there_already_is_told_by_the_head(place, monkeypatch, capsys):
    """Which a registry's entries can bring; nothing at all can be read then."""
    settings = type("Again", (), {"__doc__": "x", "__annotations__": {}})
    monkeypatch.setattr(run_module, "_declared", [Owned({"booster": settings})])
    with pytest.raises(SystemExit) as end:
        answer("pretrain", [])
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: settings named 'booster' are there already; give yours another name\n"
