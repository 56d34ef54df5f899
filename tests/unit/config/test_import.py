"""--import: a user's modules are imported before flags are read, and what they declare is as ours is."""

import sys

import pytest

from llama_dyt.config import run as run_module
from llama_dyt.config.cli import parse, read
from llama_dyt.config.run import RunConfig, all_options
from llama_dyt.core import extensions
from llama_dyt.core.errors import ConfigurationError

MODULE = '''
from dataclasses import dataclass

from llama_dyt.config import Owned, declare
from llama_dyt.config.options import TRAINING, option
from llama_dyt.core.problem import Problem


@dataclass(frozen=True)
class NoiseSettings:
    """Noise on the activations."""

    noise: float = option(0.0, "Standard deviation of the noise.", at_least=0, metavar="STD", spellings=("jitter",))
    noise_in_training: bool = option(True, "Leave the noise out of validation.", entries=TRAINING)


def problems(run, world_size, device):
    if run.noise.noise > 0 and run.data.batch_size == 1:
        yield Problem("noise", run.noise.noise, "needs two sequences or more", "give --batch_size 2")


declare(Owned({"noise": NoiseSettings}, problems))
'''


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory with the user's module, in a process that has imported nothing of theirs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(extensions, "_loaded", {})
    monkeypatch.setattr(run_module, "_declared", [])
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "my_noise.py").write_text(MODULE)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_its_flags_are_read_and_judged_like_ours():
    run = parse("pretrain", ["--import", "my_noise", "--jitter=0.5", "--no-noise_in_training"])
    assert (run.noise.noise, run.noise.noise_in_training, run.run.imports) == (0.5, False, ("my_noise",))
    for words, message in (
        (["--noise", "much"], "--noise: 'much' is not a number"),
        (["--noise=-1"], "--noise -1.0: give 0 or more"),
        (["--noise=1", "-b", "1"], "--noise 1: needs two sequences or more; give --batch_size 2"),
        (["--niose=1"], "unknown flag '--niose': did you mean '--noise'?"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            parse("pretrain", ["--import", "my_noise", *words])
        (problem,) = caught.value.problems
        assert problem.startswith(message), problem


def test_without_it_there_is_no_such_flag():
    _, (problem,) = read("pretrain", ["--noise", "1"])
    assert problem.startswith("unknown flag '--noise'")


def test_an_entry_has_the_flags_that_are_declared_for_it():
    run, (problem,) = read("benchmark", ["--import", "my_noise", "--noise", "1", "--noise_in_training"])
    assert run.noise.noise == 1
    assert problem == "--noise_in_training is a flag of pretrain.py and finetune.py, not of benchmark.py"


def test_help_has_a_group_of_them(capsys):
    with pytest.raises(SystemExit) as end:
        parse("pretrain", ["--help", "--import", "my_noise"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "noise: Noise on the activations. --noise STD Standard deviation of the noise. (default: 0.0)" in shown
    assert "(default: on; --no-noise_in_training turns it off)" in shown


def test_they_stand_in_the_written_run_and_are_read_back(folder):
    run = parse("pretrain", ["--import", "my_noise", "--noise", "0.25", "--no-noise_in_training"])
    text = run.to_yaml()
    assert "noise: 0.25\nnoise_in_training: false\n" in text and "import:\n- my_noise\n" in text
    (folder / "config.yaml").write_text(text)
    extensions._loaded.clear()
    run_module._declared.clear()
    del sys.modules["my_noise"]
    again = parse("pretrain", ["--config_file", "config.yaml"])
    assert {**again.flags(), "config_file": None} == run.flags() == RunConfig.from_yaml(text).flags()


def test_a_file_that_is_read_imports_nothing(folder):
    """A checkpoint's config.yaml may be anybody's; only what the user says is imported."""
    text = parse("pretrain", ["--import", "my_noise"]).to_yaml()
    extensions._loaded.clear()
    run_module._declared.clear()
    with pytest.raises(ConfigurationError, match="unknown key 'noise'"):
        RunConfig.from_yaml(text)
    assert extensions.names() == ()


@pytest.mark.parametrize(
    ("words", "yaml", "names"),
    [
        (["--import", "one", "--import=two"], "", ("one", "two")),
        ([], "import: one", ("one",)),
        ([], "import: [two, one]", ("two", "one")),
        (["--import", "two"], "import: [one]", ("two",)),
        ([], "import: []", ()),
        (["-b", "4"], "import:\n- two", ("two",)),
    ],
)
def test_it_is_repeatable_and_a_list_in_yaml_and_the_command_line_wins(folder, words, yaml, names):
    (folder / "one.py").write_text("")
    (folder / "two.py").write_text("")
    (folder / "recipe.yaml").write_text(yaml)
    run, problems = read("pretrain", [*words, "--config-file", "recipe.yaml"])
    assert problems == []
    assert run.run.imports == extensions.names() == names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--import"], "--import: needs a value"),
        (["--import", "nowhere"], "--import nowhere: no such module, neither installed nor in "),
        (["--import", "half", "--noise=1"], "--import half: it failed while it was imported: ValueError: no;"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_with_the_rest(folder, words, message):
    (folder / "half.py").write_text("raise ValueError('no')\n")
    _, problems = read("pretrain", [*words, "-b", "two"])
    assert problems[0].startswith(message), problems
    assert any(problem.startswith("--batch_size: 'two'") for problem in problems)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"noise": NoiseSettings',
            '"booster": NoiseSettings',
            "settings named 'booster' are there already; give yours",
        ),
        ("    noise:", "    tp:", "noise: a flag --tp is there already (of booster); give yours another name"),
        ('"jitter"', '"learning_rate"', "noise: a flag --learning_rate is there already (of optimizer); give yours"),
    ],
)
def test_what_is_there_already_is_refused_and_nothing_is_added(folder, old, new, message):
    before = [opt.name for opt in all_options()]
    (folder / "clashing.py").write_text(MODULE.replace(old, new))
    _, (problem,) = read("pretrain", ["--import", "clashing"])
    assert problem.startswith(f"--import clashing: {message}")
    assert [opt.name for opt in all_options()] == before
