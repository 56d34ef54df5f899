"""torchrun is asked to end, and Slurm asks its workers as well: the run saves, and says so where torchrun cannot."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress

import pytest

from llama_dyt.training.trackers.jsonl import read_metrics
from tests.cli.entries import Command, finish, wait_until
from tests.cli.test_launcher_killed import workers_of


@pytest.mark.slow
def test_torchrun_asked_to_end_saves_and_leaves_word_of_it(corpus, tmp_path):
    flags = corpus.pretrain_flags(save_dir="run", max_steps=1_000_000)
    (process,) = Command("pretrain", flags, tmp_path, launcher="torchrun", processes=2).start()
    wait_until(lambda: bool(read_metrics(tmp_path / "run" / "metrics.jsonl")), process)
    workers = workers_of(process.pid)
    process.send_signal(signal.SIGTERM)
    for _ in range(4):  # torchrun passes its own on meanwhile
        for pid in workers:
            with suppress(ProcessLookupError):  # one may have saved and ended by now
                os.kill(pid, signal.SIGTERM)
        time.sleep(0.02)
    outcome = finish([process])
    assert "saved and stopped on a signal" in outcome.stdout, outcome.stderr
    assert outcome.status == 1  # whatever its workers end with
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "stopped"
    assert (tmp_path / "run" / f"step_{status['step']:08d}" / "COMPLETE").is_file()
