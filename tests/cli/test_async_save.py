"""Asynchronous saves of real runs: the writing process killed, out of room, slow, outliving its run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from llama_dyt.core.processes import start_time
from llama_dyt.training.checkpoint.marker import why_incomplete
from llama_dyt.training.trackers.jsonl import read_metrics
from tests.cli.entries import LIMIT_SECONDS, Command, finish, wait_until

RUN = "held://runs/7"
GIVEN = {"import": "slow_store", "save_dir": RUN, "save_interval": 2, "max_steps": 8, "tensorboard_dir": "none"}


@pytest.fixture
def start(corpus, tmp_path, monkeypatch):
    """Starts `pretrain.py` with a store that keeps the files of step 4 waiting."""
    shutil.copy(Path(__file__).with_name("slow_store.py"), tmp_path)
    monkeypatch.setenv("HELD", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def begin(*more: str, **flags):
        words = corpus.pretrain_flags(**{**GIVEN, **flags})
        (process,) = Command("pretrain", [*words, "--async_save", *more], tmp_path).start()
        return process

    yield begin
    (tmp_path / "go").touch()
    ended_by_itself(tmp_path)


def writer_in(folder: Path) -> int:
    return int((folder / "waits").read_text())


def ended_by_itself(folder: Path) -> None:
    """No writing process is left behind."""
    if not (folder / "waits").exists():
        return
    deadline = time.monotonic() + LIMIT_SECONDS
    while start_time(writer_in(folder)) is not None:
        assert time.monotonic() < deadline, "the writing process is still there"
        time.sleep(0.05)


def step(folder: Path, number: int) -> Path:
    return folder / "files" / "runs" / "7" / f"step_{number:08d}"


def test_the_writing_process_killed_ends_the_run_with_the_reason_and_harms_nothing(start, tmp_path):
    process = start()
    wait_until((tmp_path / "waits").exists, process)
    os.kill(writer_in(tmp_path), signal.SIGKILL)
    outcome = finish([process])
    assert outcome.status == 2
    (line,) = outcome.errors
    assert line.startswith(f"could not write checkpoint {RUN}/step_00000004: the process that writes checkpoints (pid ")
    assert "is gone: killed by signal 9" in line and f"(the last complete checkpoint is {RUN}/step_00000002)" in line
    assert why_incomplete(step(tmp_path, 2)) is None
    assert not (step(tmp_path, 4) / "COMPLETE").exists()
    assert not list(tmp_path.glob("llama_dyt-writing-*"))


def test_a_full_disk_ends_the_run_with_the_reason(start, tmp_path):
    (tmp_path / "full").touch()
    outcome = finish([start()])
    assert outcome.status == 2
    (line,) = outcome.errors
    assert "step_00000004: rank 0: " in line and "No space left on device; free space or take another" in line
    assert not step(tmp_path, 4).exists() or not any(path.is_file() for path in step(tmp_path, 4).rglob("*"))


def test_a_run_killed_while_its_checkpoint_is_written_is_resumed_from_that_one(start, tmp_path):
    process = start(max_steps=1_000_000)
    wait_until((tmp_path / "waits").exists, process)
    time.sleep(0.2)  # it trains on, or waits for its next save
    process.kill()
    process.wait()
    again = start(load="auto")
    deadline = time.monotonic() + LIMIT_SECONDS
    while not _waits(again):
        assert again.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    (tmp_path / "go").touch()
    outcome = finish([again])
    assert outcome.status == 0, outcome.stderr
    assert f"its process {writer_in(tmp_path)} is still writing a checkpoint there" in outcome.stderr
    assert f"resumed from {RUN}/step_00000004, step 4" in outcome.stderr
    assert "removed" not in outcome.stderr
    metrics = read_metrics(tmp_path / "files" / "runs" / "7" / "metrics.jsonl")
    assert [record["step"] for record in metrics] == list(range(1, 9))
    assert [record["step"] for record in metrics if "save_blocked_seconds" in record] == [3, 7]


def _waits(process) -> bool:
    return b"is still writing a checkpoint" in process._files[1].read_bytes()


def test_saves_are_skipped_by_choice_while_one_is_written_and_the_last_one_never(start, tmp_path, monkeypatch):
    monkeypatch.setenv("HELD_STEP", "2")
    process = start("--async_save_busy", "skip", max_steps=12)
    wait_until((tmp_path / "waits").exists, process)
    events = tmp_path / "cache"
    wait_until(lambda: any("not saved" in path.read_text() for path in events.rglob("events.jsonl")), process)
    (tmp_path / "go").touch()
    outcome = finish([process])
    assert outcome.status == 0, outcome.stderr
    assert "step 4: not saved: the checkpoint of step 2 is still being written" in outcome.stderr
    assert all(why_incomplete(step(tmp_path, number)) is None for number in (2, 12))
    assert not step(tmp_path, 4).exists()


def test_only_the_newest_and_milestones_stay_whoever_writes(corpus, tmp_path):
    flags = corpus.pretrain_flags(
        save_dir="run", save_interval=1, max_steps=7, keep_last=2, keep_every=3, tensorboard_dir="none"
    )
    for more in ([], ["--async_save"]):
        outcome = Command("pretrain", [*flags, *more], tmp_path).run()
        assert outcome.status == 0, outcome.stderr
        assert sorted(path.name for path in (tmp_path / "run").glob("*step_*")) == [
            f"step_{number:08d}" for number in (3, 6, 7)
        ]
        assert "removed run/step_00000005 (--keep_last 2)" in outcome.stderr
        status = json.loads((tmp_path / "run" / "status.json").read_text())
        assert status["step"] == 7
        assert not list((tmp_path / "run").glob(".claim*"))
        shutil.rmtree(tmp_path / "run")
