"""Signals at the places where a run cannot save at once: it ends in time, says so, and leaves nothing half made."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from llama_dyt.training.checkpoint.marker import why_incomplete
from tests.cli.entries import Command, finish, wait_until
from tests.cli.test_async_save import ended_by_itself

GRACE = 1


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    for module in ("slow_store.py", "held_callback.py"):
        shutil.copy(Path(__file__).with_name(module), tmp_path)
    monkeypatch.setenv("HELD", str(tmp_path))
    return tmp_path


def command(corpus, folder, *more: str, processes: int = 1, **flags) -> Command:
    given = {"save_interval": 2, "max_steps": 1_000_000, "tensorboard_dir": "none", **flags}
    words = [*corpus.pretrain_flags(**given), *more]
    return Command("pretrain", words, folder, "srun" if processes > 1 else "python", processes)


def end_in_time(processes, number: int, status: int, which: int = 0):
    """The outcome of a run of which one process gets a signal."""
    processes[which].send_signal(number)
    outcome = finish(processes)
    assert {process.returncode for process in processes} == {status}, outcome.stderr
    assert "Traceback" not in outcome.stderr
    return outcome


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(other, marks=pytest.mark.matrix) for other in (signal.SIGUSR1, signal.SIGINT))],
)
def test_before_the_first_step_a_signal_ends_all_ranks_at_once_and_leaves_nothing(corpus, folder, monkeypatch, number):
    """The one that gets it waits in C++ for the other, which is held up."""
    monkeypatch.setenv("HELD_AT", "on_start")
    monkeypatch.setenv("HELD_RANK", "1")
    flags = ("--import", "held_callback", "--callback", "held", "--async_save")
    processes = command(corpus, folder, *flags, processes=2, save_dir="run").start()
    wait_until((folder / "on_start.1").exists, processes[0])
    wait_until((folder / "on_start.0").exists, processes[0])
    outcome = end_in_time(processes, number, 128 + number)
    assert f"ended by {number.name} before the first step: there was nothing to save" in outcome.stderr
    assert not list((folder / "run").glob("*step_*")) and not list((folder / "run").glob(".claim*"))


@pytest.mark.parametrize("which", [pytest.param(0, marks=pytest.mark.matrix), 1])
def test_a_step_that_does_not_end_is_left_in_time_by_all_ranks(corpus, folder, monkeypatch, which):
    monkeypatch.setenv("HELD_AT", "after_step")
    monkeypatch.setenv("HELD_RANK", "1")
    flags = ("--import", "held_callback", "--callback", "held", "--save_grace", str(GRACE))
    processes = command(corpus, folder, *flags, processes=2, save_dir="run").start()
    wait_until((folder / "after_step.1").exists, processes[0])
    outcome = end_in_time(processes, signal.SIGTERM, 75, which)
    said = f"no checkpoint was whole {GRACE} s after SIGTERM (--save_grace): ended without one"
    assert outcome.stderr.count(said) == 1
    assert "the last complete one is run/step_00000002" in outcome.stderr
    assert why_incomplete(folder / "run/step_00000002") is None
    assert sorted(path.name for path in (folder / "run").glob("*step_*")) == ["step_00000002"]
    assert not list((folder / "run").glob(".claim*"))
    status = json.loads((folder / "run/status.json").read_text())
    assert (status["state"], status["step"]) == ("stopped", 2), "scripts requeue by it"


@pytest.mark.parametrize("way", [[], ["--async_save"]], ids=["sync", "async"])
def test_a_save_that_does_not_end_is_given_up_and_the_one_before_stays(corpus, folder, monkeypatch, way):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    store = ("--import", "slow_store", *way)
    run = {"save_dir": "held://runs/7", "save_grace": GRACE}
    (process,) = command(corpus, folder, *store, **run).start()
    wait_until((folder / "waits").exists, process)
    began = time.monotonic()
    outcome = end_in_time([process], signal.SIGUSR1, 75)
    assert time.monotonic() - began < 60
    assert "after SIGUSR1 (--save_grace)" in outcome.stderr
    assert "the last complete one is held://runs/7/step_00000002" in outcome.stderr
    kept = folder / "files/runs/7"
    assert why_incomplete(kept / "step_00000002") is None and not (kept / "step_00000004/COMPLETE").exists()
    assert json.loads((kept / "status.json").read_text())["state"] == "stopped"
    (folder / "go").touch()  # what an asynchronous save has handed over is finished all the same
    ended_by_itself(folder)
    again = command(corpus, folder, *store, **{**run, "max_steps": 6, "load": "auto", "save_grace": 300}).run()
    assert again.status == 0, again.stderr
    assert f"resumed from held://runs/7/step_0000000{4 if way else 2}" in again.stderr
    assert all(why_incomplete(kept / f"step_0000000{step}") is None for step in (2, 4, 6))


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.matrix), 2])
def test_a_run_whose_ranks_all_wait_for_data_saves_as_it_stands(corpus, folder, processes):
    """One rank alone is asked, and the others learn of it."""
    (folder / "text.held").write_text("700")
    flags = {"dataset": "text.held", "save_dir": "run", "save_interval": 1000, "num_workers": 0}
    run = command(corpus, folder, "--import", "held_callback", processes=processes, **flags)
    ranks = run.start()
    metrics = folder / "run/metrics.jsonl"
    for rank in range(processes):
        wait_until((folder / f"data.{rank}").exists, ranks[rank])
    wait_until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 2, ranks[0])
    outcome = end_in_time(ranks, signal.SIGTERM, 75, which=processes - 1)
    status = json.loads((folder / "run/status.json").read_text())
    assert status["state"] == "stopped" and status["step"] > 2
    assert why_incomplete(folder / f"run/step_{status['step']:08d}") is None
    assert outcome.stderr.count("saved run/step_") == 1
