"""A tracker in one file outside of the package (`my_tracker.py`) is told of a run; one that fails does not end it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llama_dyt.training.trackers.jsonl import read_metrics
from tests.cli.conftest import Corpus, corpus  # noqa: F401
from tests.cli.entries import Command, Outcome

ALONE = Path(__file__).with_name("my_tracker.py")
BROKEN = "warning: tracker broken failed in log: ConnectionError: the server is away; the run goes on"


def start(corpus: Corpus, folder: Path, *words: str, **flags) -> Outcome:  # noqa: F811
    """Two ranks of `pretrain.py`, in a folder that has the user's file and nothing else of his."""
    shutil.copy(ALONE, folder / "mine.py")
    given = {"import": "mine", "save_interval": 2, "tensorboard_dir": "none", "save_dir": "run"}
    flags = corpus.pretrain_flags(**given | {"lr_scheduler": "constant"} | flags)
    return Command("pretrain", [*flags, *words], folder, launcher="srun", processes=2).run()


@pytest.mark.slow
def test_a_tracker_in_one_file_goes_on_over_a_resume_beside_one_that_fails(corpus, tmp_path):  # noqa: F811
    for flags in ({"plugin": "ddp", "max_steps": 2}, {"plugin": "fsdp", "max_steps": 4, "load": "auto"}):
        flags |= {"tracker": "table", "table_digits": 5}
        outcome = start(corpus, tmp_path, "--tracker", "broken", **flags)
        assert outcome.status == 0, outcome.stderr
        assert outcome.stderr.count("tracker broken failed") == 1 and BROKEN in outcome.stderr
        assert "  table       run/losses.csv" in outcome.stdout
    head, *rows = (tmp_path / "run/losses.csv").read_text().splitlines()
    assert head == "step,loss"
    metrics = read_metrics(tmp_path / "run/metrics.jsonl")
    assert rows == [f"{record['step']},{record['loss']:.5f}" for record in metrics] and len(rows) == 4


def test_an_unknown_one_is_told_and_flags_of_its_own_stand_in_help(corpus, tmp_path):  # noqa: F811
    shutil.copy(ALONE, tmp_path / "mine.py")
    (tmp_path / "run.yaml").write_text("import: [mine]\ntracker: [tabel, table, table]\n")
    shown = Command("pretrain", ["--config_file", "run.yaml", "--help"], tmp_path).run()
    assert shown.status == 0 and "--table_digits" in shown.stdout
    refused = Command("pretrain", [*corpus.pretrain_flags(), "--config_file", "run.yaml"], tmp_path).run()
    assert refused.status != 0
    assert "--tracker tabel: unknown tracker 'tabel': did you mean 'table'?" in refused.stderr
    assert "--tracker table is given twice" in refused.stderr
