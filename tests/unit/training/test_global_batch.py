"""Another number of ranks: the global batch holds, or the arithmetic says why it cannot."""

from __future__ import annotations

import pytest

from llama_dyt.config.run import RunConfig
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.training.plan.check import check
from llama_dyt.training.plan.global_batch import batch_state, overruled, with_batch_of, with_global_batch
from llama_dyt.training.plan.parse import parse
from llama_dyt.training.settings import sequences_per_step


def run_of(**flags) -> RunConfig:
    return RunConfig.build("pretrain", plugin="zero2", **flags)


@pytest.mark.parametrize(
    ("ranks", "flags", "accumulation"),
    [
        (1, {"batch_size": 2}, 12),
        (4, {"batch_size": 2}, 3),
        (8, {"batch_size": 3, "gradient_accumulation_steps": 7}, 1),
        (8, {"batch_size": 1, "plugin": "hybrid_parallel", "tp": 2}, 6),
    ],
)
def test_a_global_batch_sets_the_accumulation(ranks, flags, accumulation):
    run = with_global_batch(run_of().replace(global_batch_size=24, **flags), ranks)
    assert run.optimizer.gradient_accumulation_steps == accumulation
    assert sequences_per_step(run, ranks) == 24


def test_a_global_batch_that_cannot_be_made_is_refused_with_the_arithmetic(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "5")
    monkeypatch.setenv("RANK", "0")
    words = ["--plugin", "zero2", "--batch_size", "2", "--global_batch_size", "24", "--max_steps", "3"]
    (problem,) = [problem for problem in check(parse("pretrain", words)).found.problems if "global" in problem]
    assert "24 / (5 x 2) = 2.4 batches each" in problem
    assert "take 2, 3, 4 or 6 data-parallel ranks" in problem and "--global_batch_size 20 or 30" in problem


@pytest.mark.parametrize("words", [["--batch_size", "0"], ["--tp", "0"], ["--global_batch_size", "-8"]])
def test_a_number_out_of_range_is_told_once_and_not_divided_by(words):
    problems = check(parse("pretrain", ["--global_batch_size", "24", "--max_steps", "3", *words])).found.problems
    assert len([problem for problem in problems if words[0] in problem]) == 1, problems


def checkpoint_of(run: RunConfig, ranks: int) -> dict:
    return {"batch": batch_state(run, run, ranks)}


def test_a_run_that_comes_back_by_the_same_flags_keeps_its_global_batch():
    asked = run_of(batch_size=1, gradient_accumulation_steps=2)
    saved = checkpoint_of(asked, 4)
    held, (note,) = with_batch_of(saved, "step_3", asked, 2)
    assert held.optimizer.gradient_accumulation_steps == 4 and "so that a step keeps the 8 of step_3" in note
    # Put back once more, on as many and on yet another number: the flags are those of the first start.
    saved = {"batch": batch_state(asked, held, 2)}
    for ranks, accumulation in [(2, 4), (4, 2), (8, 1)]:
        again, _ = with_batch_of(saved, "step_6", asked, ranks)
        assert again.optimizer.gradient_accumulation_steps == accumulation


def test_a_run_that_cannot_keep_its_global_batch_is_refused_with_the_arithmetic():
    asked = run_of(batch_size=1, gradient_accumulation_steps=2, load="auto")
    with pytest.raises(ConfigurationError, match=r"8 sequences a step cannot be made of 3 .* 8 / \(3 x 1\) = 2.667"):
        with_batch_of(checkpoint_of(asked, 4), "step_3", asked, 3)


@pytest.mark.parametrize("changed", [{"batch_size": 4}, {"gradient_accumulation_steps": 1}, {"global_batch_size": 16}])
def test_another_batch_that_is_asked_for_is_had_and_told(changed):
    saved = checkpoint_of(run_of(batch_size=1, gradient_accumulation_steps=2), 4)
    asked = with_global_batch(run_of(batch_size=1, gradient_accumulation_steps=2).replace(**changed), 4)
    run, (note,) = with_batch_of(saved, "step_3", asked, 4)
    assert run is asked and "and not the 8 of step_3" in note


def test_a_checkpoint_of_before_says_nothing_of_its_batch():
    asked = run_of(batch_size=1)
    assert with_batch_of({}, "step_3", asked, 2) == (asked, [])


def test_an_accumulation_that_is_given_beside_a_global_batch_is_told_to_be_overruled():
    asked = run_of(batch_size=1, gradient_accumulation_steps=3, global_batch_size=8)
    (note,) = overruled(asked, with_global_batch(asked, 2))
    assert note.startswith("--gradient_accumulation_steps is 4 and not the 3 that was given")
    assert overruled(asked, asked) == []
    assert overruled(run_of(gradient_accumulation_steps=3), run_of(gradient_accumulation_steps=4)) == []
