"""The rules of the house that no linter knows: which way imports run, and that an import changes nothing."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "llama_dyt"
ENTRIES = sorted(path for path in REPOSITORY.glob("*.py"))
MODULES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE = 400

# What each part may import besides itself: entries → training → boosters → models → norms → config; data → config only.
MAY_IMPORT = {
    "config": {"errors"},
    "norms": {"config", "errors"},
    "models": {"norms", "config", "errors"},
    "data": {"config", "errors"},
    "boosters": {"models", "norms", "config", "errors"},
    "training": {"boosters", "models", "norms", "config", "data", "errors"},
    "errors": set(),
    "registration": {"models"},
    "__init__": {"registration"},
}


def relative(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


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


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_nothing_imports_an_entry(path):
    entries = {entry.stem for entry in ENTRIES}
    wrong = [f"line {line}: {name}" for line, name in imported_names(path) if name.split(".")[0] in entries]
    assert not wrong, f"{relative(path)} imports an entry: {wrong}"


@pytest.mark.parametrize(
    "path", [p for p in [*MODULES, *ENTRIES] if PACKAGE / "boosters" not in p.parents], ids=relative
)
def test_only_boosters_import_the_engine(path):
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


OPTIONAL_PACKAGES = {"flash_attn", "liger_kernel", "triton"}


@pytest.mark.parametrize("path", [*MODULES, *ENTRIES], ids=relative)
def test_what_is_imported_is_in_the_requirements(path):
    lines = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = {line.split("==")[0].lower().replace("_", "-") for line in lines if line and not line.startswith("#")}
    installed_by = packages_distributions()
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
    if "colossalai" in sys.modules and name.startswith("llama_dyt.") and part not in ("boosters", "training"):
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
# Imported libraries' own doing (transformers, matplotlib and colossalai set these for themselves).
VARIABLES_OF_LIBRARIES = {
    "TORCHINDUCTOR_CACHE_DIR",
    "KMP_INIT_AT_FORK",
    "KMP_DUPLICATE_LIB_OK",
    "TF2_BEHAVIOR",
    "CUDA_DEVICE_MAX_CONNECTIONS",
}


@pytest.mark.slow
def test_importing_every_module_has_no_effect_on_the_world(tmp_path):
    # Parts without the engine first, so that a stray import of it shows.
    order = ["config", "norms", "models", "data", "errors", "registration", "boosters", "training"]
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
