"""A problem is the text that is shown, and its parts."""

import pickle

import pytest

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.problem import Problem, flags_of


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("lr", -1.0, "give more than 0"), "--lr -1: give more than 0"),
        (Problem("lr", None, "needs a number"), "--lr: needs a number"),
        (Problem("compile", True, "no compiler", "install one"), "--compile: no compiler; install one"),
        (Problem("tp", 3, "does not divide 4 heads", "give 2", clause=True), "--tp 3 does not divide 4 heads; give 2"),
        (Problem("lr", "x", "not a number", text="a.yaml: lr: not a number"), "a.yaml: lr: not a number"),
    ],
)
def test_it_is_the_message_that_is_shown(problem, text):
    assert problem == text and str(problem) == text
    assert ConfigurationError([problem]).args == (text,)


def test_its_flags_are_its_own_and_those_that_it_follows_from():
    assert flags_of(Problem("zero", 2, "has no effect", also=("plugin", "pp"))) == ("zero", "plugin", "pp")
    assert flags_of("a plain message about --zero") == ()


def test_another_flag_can_have_brought_the_value():
    problem = Problem("dataset", "x", "is plain text", "give prompts", also=("task",), clause=True, local=True)
    other = problem.of("validation_dataset")
    assert other == "--validation_dataset x is plain text; give prompts"
    assert (other.flags, other.local) == (("validation_dataset", "task"), True)


def test_what_follows_from_this_machine_says_so_and_reads_the_same():
    problem = Problem("fp8", "rowwise", "a CPU has none", "leave it out", also=("fp8_emulate",))
    assert problem.here() == problem and problem.here().local and not problem.local
    assert problem.here().flags == problem.flags


def test_it_keeps_its_parts_from_one_process_to_another():
    error = ConfigurationError([Problem("load", "run", "is gone", also=("save_dir",), local=True), "plain"])
    problem, plain = pickle.loads(pickle.dumps(error)).problems
    assert (problem, problem.flags, problem.local) == ("--load run: is gone", ("load", "save_dir"), True)
    assert plain == "plain"
