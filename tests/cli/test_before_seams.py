"""Files of the commit before the seams go on being read: checkpoints, prepared data, recipes, exported folders.

`tests/fixtures/before_seams/README.md` says how they were made. All is driven from outside, by the entries.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cli.entries import Command, Outcome, run_two_at_once
from tests.forks import ROOT

FIXTURES = ROOT / "tests" / "fixtures" / "before_seams"
LOADED = "step_00000002"
TOLERANCE = 1e-4
"""Relative, of losses and gradient norms: other machines add up in another order."""
RUNS = {"dyt": "pretrain", "rmsnorm": "pretrain", "finetuned": "finetune"}
RECIPES = sorted(path.stem for path in (FIXTURES / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A copy that runs can write beside."""
    return Path(shutil.copytree(FIXTURES, tmp_path_factory.mktemp("before") / "seams"))


@pytest.fixture(scope="module")
def resumed(folder) -> dict[str, tuple[Outcome, Path]]:
    """(outcome, save_dir) of each run gone on with, by its own config.yaml; one under another plugin as well."""
    starts = {name: (entry, name, "python", 1, []) for name, entry in RUNS.items()}
    starts["rmsnorm"] = ("pretrain", "rmsnorm", "srun", 2, [])
    starts["rmsnorm under ddp"] = ("pretrain", "rmsnorm", "python", 1, ["--plugin", "ddp", "--pp", "1"])
    commands = []
    for number, (entry, run, launcher, processes, more) in enumerate(starts.values()):
        flags = ["--config_file", f"{run}/config.yaml", "--load", f"{run}/{LOADED}", "--save_dir", f"resumed/{number}"]
        commands.append(Command(entry, [*flags, *more], folder, launcher, processes))
    outcomes = run_two_at_once(*commands)
    return {name: (o, folder / f"resumed/{n}") for n, (name, o) in enumerate(zip(starts, outcomes))}


def metrics(save_dir: Path) -> list[dict]:
    """What is logged after the checkpoint."""
    lines = (save_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["step"] > 2]


@pytest.mark.parametrize("name", [*RUNS, "rmsnorm under ddp"])
def test_a_checkpoint_is_gone_on_from_with_the_recorded_losses(resumed, name):
    outcome, save_dir = resumed[name]
    assert outcome.status == 0, outcome.stderr
    recorded, found = metrics(FIXTURES / name.split()[0]), metrics(save_dir)
    assert [record["step"] for record in found] == [record["step"] for record in recorded]
    for ours, theirs in zip(found, recorded):
        assert ours.keys() >= theirs.keys()
        for key in {"loss", "grad_norm", "lr", "tokens_seen", "validation_loss", "validation_tokens"} & theirs.keys():
            assert ours[key] == pytest.approx(theirs[key], rel=TOLERANCE), key
    if name in RUNS:
        kept, written = (files(folder) for folder in (FIXTURES / name / LOADED, save_dir / "step_00000004"))
        assert {file for file in kept if not file.endswith(".py")} <= written


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_prepared_data_are_whole_and_preparing_the_text_again_gives_the_same_bytes(folder):
    flags = ["-d", "text", "--tokenizer", "tokens/tokenizer", "--validation_fraction", "0.1", "-j", "1", "-o", "again"]
    verified, again = run_two_at_once(
        Command("prepare_data", ["--verify", "-o", "tokens"], folder), Command("prepare_data", flags, folder)
    )
    assert verified.status == 0 and "are as they were written" in verified.stdout, verified.stderr
    assert again.status == 0, again.stderr
    files = [path.relative_to(folder / "tokens") for path in (folder / "tokens").glob("*/*.[td]*") if path.is_file()]
    shards = [file for file in files if file.parts[0] in ("train", "validation")]
    assert len(shards) == 4
    for file in shards:
        assert (folder / "again" / file).read_bytes() == (FIXTURES / "tokens" / file).read_bytes(), file


@pytest.fixture(scope="module")
def planned(folder) -> dict[str, Outcome]:
    """The dry run of each recipe."""
    commands = [
        Command(
            name.split("_")[0], f"--config_file recipes/{name}.yaml --dry_run --dry_run_processes 8".split(), folder
        )
        for name in RECIPES
    ]
    return dict(zip(RECIPES, run_two_at_once(*commands)))


@pytest.mark.parametrize("name", RECIPES)
def test_every_key_of_a_recipe_is_read(planned, name):
    assert planned[name].status == 0, planned[name].stderr
    recipe = yaml.safe_load((FIXTURES / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
    run = yaml.safe_load(planned[name].stdout)
    assert {key: run.get(key, "missing") for key in recipe} == recipe


def test_exported_folders_load_where_this_package_does_not_exist(tmp_path):
    program = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("llama_dyt", "colossalai"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model, report = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    out = model.generate(**tokenizer("the ", return_tensors="pt"), max_new_tokens=5, do_sample=False)
    print(type(model).__name__, model.config.norm_type, out.shape[0])
"""
    folders = [str(FIXTURES / name / LOADED / "model") for name in ("dyt", "rmsnorm")]
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    words = [sys.executable, "-I", "-B", "-c", program, *folders]
    result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["LlamaDytForCausalLM dyt 1", "LlamaDytForCausalLM rmsnorm 1"]
