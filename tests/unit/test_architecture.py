"""The rules of the house that no linter knows: which way imports run, and that an import changes nothing."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "llama_dyt"
ENTRIES = sorted(path for path in REPOSITORY.glob("*.py"))
MODULES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE = 450

# What each part may import besides itself: entries → training → launch → boosters → models → norms → config → core;
# data → config and core; convert → data, models and what they may.
_ORDER = ["core", "config", "norms", "models", "boosters", "launch", "training"]
MAY_IMPORT = {
    **{part: set(_ORDER[:place]) for place, part in enumerate(_ORDER)},
    "data": {"config", "core"},
    "convert": {"data", "models", "norms", "config", "core"},
    "training": {*_ORDER[:-1], "data"},
    "registration": {"models"},
    "__init__": {"registration"},
}


def relative(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@cache
def imported_names(path: Path) -> list[tuple[int, str]]:
    """(line, absolute module name) of every import in a file, inside functions too. `from a import b` gives a.b."""
    found = []
    package = list(path.relative_to(REPOSITORY).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return found


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_run_one_way(path):
    part = part_of(path)
    allowed = MAY_IMPORT[part] | {part}
    wrong = []
    for line, name in imported_names(path):
        parts = name.split(".")
        if parts[0] == "llama_dyt" and len(parts) > 1 and parts[1] not in allowed:
            wrong.append(f"line {line}: {name}")
    assert not wrong, f"{relative(path)} ({part}) may import {sorted(allowed)} only: {wrong}"


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of nodes that reach each other: Tarjan's strongly connected components of more than one."""
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    open_nodes: list[str] = []
    found = []

    def visit(node: str) -> None:
        numbers[node] = lowest[node] = len(numbers)
        open_nodes.append(node)
        for other in sorted(graph[node]):
            if other not in numbers:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in open_nodes:
                lowest[node] = min(lowest[node], numbers[other])
        if lowest[node] == numbers[node]:
            group = open_nodes[open_nodes.index(node) :]
            del open_nodes[open_nodes.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in numbers:
            visit(node)
    return found


def test_no_file_imports_in_a_circle():
    """Imports inside functions and those for types alone count too: each tells that two files are one idea."""
    paths = {module_name(path): path for path in MODULES}
    graph = {}
    for module, path in paths.items():
        names = [name for _, name in imported_names(path)]
        graph[module] = {name if name in paths else name.rpartition(".")[0] for name in names} & set(paths) - {module}
    assert circles(graph) == []


def test_circles_are_found():
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert circles(graph) == [["d", "e"], ["a", "b", "c"]]


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_nothing_imports_an_entry(path):
    entries = {entry.stem for entry in ENTRIES}
    wrong = [f"line {line}: {name}" for line, name in imported_names(path) if name.split(".")[0] in entries]
    assert not wrong, f"{relative(path)} imports an entry: {wrong}"


@pytest.mark.parametrize(
    "path",
    [p for p in [*MODULES, *ENTRIES] if not {PACKAGE / "boosters", PACKAGE / "launch"} & {*p.parents}],
    ids=relative,
)
def test_only_boosters_and_launch_import_the_engine(path):
    wrong = [f"line {line}: {name}" for line, name in imported_names(path) if name.split(".")[0] == "colossalai"]
    assert not wrong, f"{relative(path)} imports Colossal-AI past llama_dyt.boosters: {wrong}"


@pytest.mark.parametrize("path", [*MODULES, *ENTRIES], ids=relative)
def test_a_file_is_short_enough_to_be_one_idea(path):
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert num_lines <= LONGEST_FILE, f"{relative(path)} has {num_lines} lines; divide it by idea"


@pytest.mark.parametrize("path", [*MODULES, *ENTRIES], ids=relative)
def test_a_module_says_what_it_holds(path):
    text = path.read_text(encoding="utf-8")
    assert not text.strip() or ast.get_docstring(ast.parse(text)), f"{relative(path)} has no docstring at its head"


@pytest.mark.parametrize(
    "path", [p for p in sorted((PACKAGE / "launch").glob("*.py")) if p.stem != "process_group"], ids=relative
)
def test_what_happens_before_torch_does_not_load_it(path):
    wrong = [f"line {line}: {name}" for line, name in imported_names(path) if name.split(".")[0] == "torch"]
    assert not wrong, f"{relative(path)} imports torch: {wrong}"


installed_packages = cache(packages_distributions)
OPTIONAL_PACKAGES = {"aim", "boto3", "botocore", "flash_attn", "liger_kernel", "lm_eval", "mlflow", "triton", "wandb"}


@pytest.mark.parametrize("path", [*MODULES, *ENTRIES], ids=relative)
def test_what_is_imported_is_in_the_requirements(path):
    lines = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = {line.split("==")[0].lower().replace("_", "-") for line in lines if line and not line.startswith("#")}
    installed_by = installed_packages()
    own = {"llama_dyt", "colossalai", *(entry.stem for entry in ENTRIES)}
    wrong = []
    for line, name in imported_names(path):
        package = name.split(".")[0]
        if package in sys.stdlib_module_names or package in own or package in OPTIONAL_PACKAGES:
            continue
        if not {d.lower().replace("_", "-") for d in installed_by.get(package, [])} & required:
            wrong.append(f"line {line}: {package}")
    assert not wrong, f"{relative(path)} imports what requirements.txt does not name: {wrong}"


IMPORT_EVERYTHING = """
import json, os, sys, threading
before = dict(os.environ)
import importlib
seen = {"engine_too_early": []}
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
    part = name.removeprefix("llama_dyt.").split(".")[0]
    if "colossalai" in sys.modules and name.startswith("llama_dyt.") and part not in ("boosters", "launch", "training"):
        seen["engine_too_early"].append(name)
import torch, torch.distributed
seen["environment"] = sorted(k for k in {*before, *os.environ} if before.get(k) != os.environ.get(k))
seen["threads"] = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
seen["process_group"] = torch.distributed.is_initialized()
seen["children"] = open(f"/proc/self/task/{os.getpid()}/children").read().split() if os.path.isdir("/proc/self") else []
seen["default_dtype"] = str(torch.get_default_dtype())
seen["deterministic"] = torch.are_deterministic_algorithms_enabled()
print("SEEN" + json.dumps(seen))
"""
# Imported libraries' own doing (transformers and matplotlib set these for themselves).
VARIABLES_OF_LIBRARIES = {
    "TORCHINDUCTOR_CACHE_DIR",
    "KMP_INIT_AT_FORK",
    "KMP_DUPLICATE_LIB_OK",
    "TF2_BEHAVIOR",
}


@pytest.mark.slow
def test_importing_every_module_has_no_effect_on_the_world(tmp_path):
    # Parts without the engine first, so that a stray import of it shows.
    order = ["core", "config", "norms", "models", "data", "convert", "registration", "boosters", "launch", "training"]
    modules = sorted(
        (p for p in MODULES if p.parent != PACKAGE or p.stem != "__init__"), key=lambda p: order.index(part_of(p))
    )
    names = [".".join(p.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__") for p in modules]
    names += [entry.stem for entry in ENTRIES]  # these come last and may import all of it
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORT_EVERYTHING, json.dumps(names)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    printed, _, seen = result.stdout.partition("SEEN")
    seen = json.loads(seen)
    assert printed == "", "an import prints"
    assert seen["engine_too_early"] == []
    assert set(seen["environment"]) <= VARIABLES_OF_LIBRARIES, "an import changes the environment"
    assert seen["threads"] == [] and seen["children"] == [], "an import starts threads or processes"
    assert not seen["process_group"]
    assert seen["default_dtype"] == "torch.float32" and not seen["deterministic"]
    assert list(tmp_path.iterdir()) == [], "an import writes files"


def test_a_flag_crosses_few_files_on_its_way_to_the_engine():
    """The walk of --tp in CONTRIBUTING.md, and no other file names or carries it."""
    named = {
        path.relative_to(PACKAGE).as_posix()
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr == "tp")
        or (isinstance(node, ast.Constant) and node.value == "tp")
        or (isinstance(node, ast.AnnAssign) and getattr(node.target, "id", None) == "tp")
    }
    assert {path for path in named if not path.startswith("training/sizing/")} == {
        "boosters/settings.py",
        "boosters/plugin_problems.py",
        "boosters/layout_problems.py",
        "training/session.py",
        "boosters/strategy.py",
        "boosters/strategies/hybrid/plugin.py",
        "boosters/strategies/gemini/plugin.py",
    }
