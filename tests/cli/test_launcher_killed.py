"""Workers end with the launcher that was killed over them, while they start, in the rendezvous and in training."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llama_dyt.core.processes import look_at
from llama_dyt.training.trackers.jsonl import read_metrics
from tests.cli.entries import LIMIT_SECONDS, Command

ENDED_WITHIN_SECONDS = 150
"""Generous, for torchrun gives its workers half a minute: a thread looks every half second, and a worker that imports a
large library lets it run only after that."""


def descendants(pid: int) -> list[int]:
    """Of a process, its own first."""
    try:
        found = list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []
    return found + [below for child in found for below in descendants(child)]


def workers_of(launcher: int) -> list[int]:
    """The processes of a launcher, its own and torchrun left out, that run the entry."""
    found = [process for pid in descendants(launcher) if (process := look_at(pid))]
    return [process.pid for process in found if len(process.words) > 2 and process.words[2].endswith("pretrain.py")]


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def has_loaded_torch(pid: int) -> bool:
    return "libtorch_cpu" in Path(f"/proc/{pid}/maps").read_text()


def sits_still(pid: int) -> Callable[[], bool]:
    """Whether a process has used no processor for a second, as one that waits for another rank does."""
    seen = [(0.0, "")]

    def look() -> bool:
        if time.monotonic() - seen[-1][0] > 1:
            seen.append((time.monotonic(), Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11]))
        return len(seen) > 2 and seen[-1][1] == seen[-2][1]

    return look


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "phase"),
    [
        pytest.param("torchrun", "starting", marks=pytest.mark.matrix),
        ("torchrun", "rendezvous"),
        pytest.param("colossalai", "starting", marks=pytest.mark.matrix),
        ("colossalai", "training"),
    ],
)
def test_workers_end_with_a_killed_launcher_and_leave_nothing(launcher, phase, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    flags = corpus.pretrain_flags(save_dir="run", max_steps=1_000_000, log_interval=1)
    (process,) = Command("pretrain", flags, tmp_path, launcher=launcher, processes=2).start()
    everybody: list[int] = []
    try:
        wait_until(lambda: len(workers_of(process.pid)) == 2, LIMIT_SECONDS)
        workers = workers_of(process.pid)
        everybody = descendants(process.pid)
        if phase == "rendezvous":
            wait_until(lambda: all(map(has_loaded_torch, workers)), LIMIT_SECONDS)
            os.kill(workers[1], signal.SIGSTOP)
            wait_until(sits_still(workers[0]), LIMIT_SECONDS)
        if phase == "training":
            wait_until(lambda: bool(read_metrics(tmp_path / "run" / "metrics.jsonl")), LIMIT_SECONDS)
        everybody = descendants(process.pid)
        process.kill()
        deadline = time.monotonic() + ENDED_WITHIN_SECONDS
        while alive := [found for pid in everybody if (found := look_at(pid))]:
            assert time.monotonic() < deadline, alive
            time.sleep(0.05)
        left = [path.name for path in (tmp_path / "scratch").iterdir() if not path.name.startswith("torchinductor_")]
        assert left == []
    finally:
        for pid in [*everybody, process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()
