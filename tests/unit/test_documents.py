"""What is shipped for people to read and run says what is so: recipes, command lines, links and the table of flags."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llama_dyt.config import KINDS
from llama_dyt.config.check import collect_problems
from llama_dyt.config.cli import read
from llama_dyt.config.run import SEAMS, USERS_SEAMS
from llama_dyt.config.yaml_file import load_mapping
from llama_dyt.convert.settings import read_conversion
from llama_dyt.core import extensions
from llama_dyt.data.preparing.settings import read_preparation
from llama_dyt.training.settings import tokens_per_step

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = sorted(REPOSITORY.glob("configs/*.yaml"))
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(REPOSITORY.glob("docs/*.md"))]
SCRIPTS = [
    REPOSITORY / ".ci/run",
    *sorted(REPOSITORY.glob("scripts/**/*.sh")),
    *sorted(REPOSITORY.glob("scripts/**/*.sbatch")),
]
ENTRY = re.compile(r"(?:^|/)(pretrain|finetune|benchmark|generate|eval_model|prepare_data|convert)\.py$")
END_OF_COMMAND = {"|", "||", "&&", ";", "&", ">", ">>", "2>", "2>&1", "<"}


def relative(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def problems_of(kind: str, arguments: list[str]) -> list[str]:
    """What is wrong with a documented command, whatever machine it is read on: folders need not exist here."""
    run, problems = read(kind, arguments)
    return [p for p in [*problems, *collect_problems(run)] if "no such folder" not in p]


def shell_lines(page: Path) -> list[str]:
    """The commands in a page's bash blocks, continued lines joined."""
    blocks = re.findall(r"^```(?:bash|shell|sh)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def entry_commands(page: Path) -> list[tuple[str, list[str]]]:
    """(entry, its arguments) of every command line that starts one of our entries, however it is launched."""
    found = []
    for line in shell_lines(page):
        words = shlex.split(line, comments=True)
        for index, word in enumerate(words):
            entry = ENTRY.search(word)
            if entry:
                rest = words[index + 1 :]
                end = next((i for i, other in enumerate(rest) if other in END_OF_COMMAND), len(rest))
                found.append((entry[1], rest[:end]))
    return found


COMMANDS = [
    pytest.param(entry, arguments, id=f"{relative(page)}:{entry} {' '.join(arguments)}"[:120])
    for page in PAGES
    for entry, arguments in entry_commands(page)
]


@pytest.mark.parametrize("path", RECIPES, ids=relative)
def test_every_recipe_is_a_run_that_could_start(path):
    mapping, _ = load_mapping(path)
    assert mapping.get("kind") in KINDS, f"{relative(path)} does not say which entry it is for (kind: …)"
    arguments = ["--config_file", str(path)]
    if mapping["kind"] == "finetune":
        arguments += ["--model_path", "owner/name"]
    run, problems = read(mapping["kind"], arguments)
    for device in ("cuda", "cpu"):
        problems += collect_problems(run, None, device)
    assert problems == []


@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem.startswith("llama2")], ids=relative)
def test_paper_recipes_take_the_papers_tokens_a_step_in_bf16(path):
    run, _ = read("pretrain", ["--config_file", str(path)])
    gpus = 1024 if path.stem.startswith(("llama2_34b", "llama2_70b")) else 512
    assert tokens_per_step(run, gpus) == 4_194_304
    assert run.booster.mixed_precision == "bf16"


BATCH_LINES = [
    (page, line)
    for page in PAGES
    for line in re.findall(r"`([^`\n]*sbatch [^`\n]*\.sbatch[^`\n]*)`", page.read_text(encoding="utf-8"))
]


def test_there_are_documented_batch_jobs():
    assert len(BATCH_LINES) >= 6


@pytest.mark.parametrize(("page", "line"), BATCH_LINES, ids=lambda part: str(part)[-80:])
def test_every_documented_batch_job_starts_a_run(page, line):
    words = shlex.split(line)
    place = next(number for number, word in enumerate(words) if word.endswith(".sbatch"))
    variables = dict(word.split("=", 1) for word in words[: words.index("sbatch")])
    script = (REPOSITORY / words[place]).read_text(encoding="utf-8")
    usual = re.search(r"CONFIG_FILE:-([^}]*)", script)[1]
    recipe = REPOSITORY / variables.get("CONFIG_FILE", usual)
    kind = re.search(r"(pretrain|finetune)\.py", script)[1]
    assert problems_of(kind, ["--config_file", str(recipe), *words[place + 1 :]]) == []


@pytest.fixture
def nothing_stays_imported(monkeypatch):
    """What a command line imports is gone again, as with the process that it would start."""
    for seam in (*SEAMS, *USERS_SEAMS):
        module, _, name = seam.partition(":")
        registry = getattr(importlib.import_module(module), name)
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(extensions, "_loaded", {})
    yield
    for loaded in extensions.names():
        del sys.modules[loaded]


@pytest.mark.usefixtures("nothing_stays_imported")
@pytest.mark.parametrize(("entry", "arguments"), COMMANDS)
def test_every_documented_command_line_is_accepted(entry, arguments):
    if entry == "generate":
        import generate

        generate.check(generate.build_parser().parse_args(arguments))
    elif entry == "convert":
        assert read_conversion(arguments)[1] == [] or arguments == ["--help"]
    elif entry == "eval_model":
        import eval_model

        eval_model.check(eval_model.build_parser().parse_args(arguments))
    elif entry == "prepare_data":
        if arguments != ["--help"]:
            assert read_preparation(arguments)[1] == []
    elif arguments != ["--help"]:
        assert problems_of(entry, arguments) == []


def test_the_documents_do_show_commands():
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("path", SCRIPTS, ids=relative)
def test_every_script_is_bash_that_parses(path):
    result = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_script_and_file_a_page_names_is_there(page):
    text = page.read_text(encoding="utf-8")
    named = set(
        re.findall(
            r"\b(?:scripts|configs|hostfiles|docs|llama_dyt|tests)/[\w./-]*\w\.(?:sh|sbatch|yaml|py|md|txt)\b", text
        )
    )
    assert [name for name in sorted(named) if not (REPOSITORY / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_relative_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_links_every_page():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert [
        relative(page) for page in PAGES if page.parent.name == "docs" and f"({relative(page)})" not in readme
    ] == []


def test_the_table_of_flags_is_the_settings():
    printed = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts/flags_table.py")], capture_output=True, text=True, check=True
    ).stdout
    page = (REPOSITORY / "docs/flags.md").read_text(encoding="utf-8")
    assert page == printed, "run: python scripts/flags_table.py > docs/flags.md"
