"""One rank fails, in every way and at every moment, under every kind of plugin: benchmarks/faults.py."""

from __future__ import annotations

import itertools
import signal
import sys

import pytest

from tests.cli.entries import ROOT, Command, finish

sys.path.append(str(ROOT / "benchmarks"))  # as `python benchmarks/faults.py` has it

from benchmarks.data.kills import write_corpus
from benchmarks.faults import KINDS, MOMENTS, PLUGINS, Cell, run

SECONDS_WITH_A_BUSY_MACHINE = 90
"""For the 30 that are allowed: the benchmark measures."""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("text"), 200)


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("cell", [Cell(*words) for words in itertools.product(PLUGINS, KINDS, MOMENTS)], ids=str)
def test_a_rank_that_fails_ends_all_with_its_reason_first(cell, text, tmp_path):
    _, wrong = run(cell, tmp_path / "run", text, SECONDS_WITH_A_BUSY_MACHINE)
    assert not wrong, "\n".join(wrong)


def test_a_rank_that_is_stopped_in_a_save_is_ended_by_the_other_which_says_where_it_stood(
    corpus, tmp_path, monkeypatch
):
    """Long before --timeout, which is ten minutes."""
    monkeypatch.setenv("FAULT", "stop save 1")
    monkeypatch.setenv("FAULT_TIME", str(tmp_path / "failed_at"))
    flags = corpus.pretrain_flags(save_dir="run", plugin="fsdp", save_interval=3)
    flags += ["--import", "benchmarks.disturbing.failing", "--callback", "fault"]
    processes = Command("pretrain", flags, tmp_path, "srun", processes=2).start()
    said = finish(processes).stderr
    assert [process.returncode for process in processes] == [1, -signal.SIGKILL]
    reason, _, report = said.partition("where each rank stood (all of it: run/failures/")
    assert f"error: rank 1 (process {processes[1].pid} on " in reason and "has been stopped for 15 s at least" in reason
    stopped, waiting = [line for line in report.splitlines() if line.startswith("  rank ")]
    assert stopped.startswith("  rank 1: stopped; step 3, save for 1")
    assert waiting.startswith("  rank 0: step 3, save for 1") and ", in all_gather" in waiting
    assert not list((tmp_path / "run").glob("*step_*")), "half a checkpoint"
