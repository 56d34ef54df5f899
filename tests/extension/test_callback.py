"""A callback in one file outside of the package (`my_callback.py`) works every so many steps, and is gone on with."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from llama_dyt.training.trackers.jsonl import read_metrics
from tests.cli.conftest import Corpus, corpus  # noqa: F401
from tests.cli.entries import Command, Outcome

ALONE = Path(__file__).with_name("my_callback.py")
STEPS = 4


def start(corpus: Corpus, folder: Path, **flags) -> Outcome:  # noqa: F811
    """Two ranks of `pretrain.py`, in a folder that has the user's file and nothing else of his."""
    if not (folder / "mine.py").exists():
        shutil.copy(ALONE, folder / "mine.py")
    given = {"import": "mine", "max_steps": STEPS, "save_interval": 2, "tensorboard_dir": "none", "save_dir": "run"}
    given |= {"lr_scheduler": "constant"} | flags
    return Command("pretrain", corpus.pretrain_flags(**given), folder, launcher="srun", processes=2).run()


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "run/drift.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("plugin", ["ddp", "fsdp"])
def test_a_collective_callback_in_one_file_keeps_its_state_over_a_resume(corpus, tmp_path, plugin):  # noqa: F811
    for flags in ({"max_steps": 2}, {"load": "auto"}):
        outcome = start(corpus, tmp_path, plugin=plugin, callback="drift", **flags)
        assert outcome.status == 0, outcome.stderr
        assert "warning: --import" not in outcome.stderr
    found = lines(tmp_path)
    assert [(line["event"], line["step"], line["looks"]) for line in found] == [
        ("start", 0, 0),
        ("look", 2, 1),
        ("save", 2, 1),
        ("end", 2, 1),
        ("start", 2, 1),
        ("look", 4, 2),
        ("save", 4, 2),
        ("end", 4, 2),
    ]
    metrics = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [record["looks"] for record in metrics] == [0, 1, 1, 2]
    losses = {record["step"]: record["loss"] for record in metrics}
    looks = [line for line in found if line["event"] == "look"]
    assert all(line["ranks"] == 1 and line["loss"] == losses[line["step"]] for line in looks)
    assert all(line["whole"] for line in found if line["event"] == "save")
    state = json.loads((tmp_path / "run/step_00000004/trainer_state.json").read_text())
    assert state["callbacks"] == {"drift": {"looks": 2}}
    assert state["imports"] == [{"name": "mine", "sha256": hashlib.sha256(ALONE.read_bytes()).hexdigest()}]


@pytest.mark.slow
def test_one_that_fails_ends_all_ranks_with_its_name(corpus, tmp_path):  # noqa: F811
    outcome = start(corpus, tmp_path, callback="failing")
    assert outcome.status != 0
    assert "--callback failing failed in before_step at step 3: ValueError: no such luck" in outcome.stderr
    assert len(read_metrics(tmp_path / "run/metrics.jsonl")) == 2
    assert (tmp_path / "run/step_00000002").is_dir()


@pytest.mark.slow
def test_resuming_says_what_the_run_before_had(corpus, tmp_path):  # noqa: F811
    assert start(corpus, tmp_path, callback="drift", max_steps=2).status == 0
    with (tmp_path / "mine.py").open("a") as file:
        file.write("\n")
    changed = start(corpus, tmp_path, callback="drift", load="auto", max_steps=3)
    assert changed.status == 0, changed.stderr
    assert "--import mine: its file is not the one that the checkpoint was made with" in changed.stdout + changed.stderr
    without = start(corpus, tmp_path, load="auto", **{"import": None})
    assert without.status == 0, without.stderr
    assert "is lost without --import mine --callback drift" in without.stdout + without.stderr


def test_an_unknown_one_is_told_and_flags_of_its_own_stand_in_help(corpus, tmp_path):  # noqa: F811
    shutil.copy(ALONE, tmp_path / "mine.py")
    shown = Command("pretrain", ["--import", "mine", "--help"], tmp_path).run()
    assert shown.status == 0 and "--drift_every" in shown.stdout
    flags = corpus.pretrain_flags(**{"import": "mine", "callback": "drft"})
    refused = Command("pretrain", flags, tmp_path).run()
    assert refused.status != 0
    assert "--callback drft: unknown callback 'drft': did you mean 'drift'?" in refused.stderr
