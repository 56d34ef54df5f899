"""One run a --save_dir: a second one is refused, and one that was stopped and overtaken writes nothing more."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from llama_dyt.training.trackers.jsonl import read_metrics
from tests.cli.entries import Command, Outcome, finish, wait_until


@pytest.fixture(scope="module")
def told(corpus, tmp_path_factory) -> dict:
    """A run is stopped; a second one comes; then the first one's claim is another machine's, and it wakes up."""
    folder = tmp_path_factory.mktemp("one_run")
    save_dir = folder / "run"
    flags = corpus.pretrain_flags(save_dir="run", save_interval=2, max_steps=500, load="auto")
    (process,) = Command("pretrain", flags, folder).start()
    wait_until((save_dir / "step_00000002" / "COMPLETE").is_file, process)
    process.send_signal(signal.SIGSTOP)
    before = listing(save_dir)
    second = Command("pretrain", flags, folder).run()
    after = listing(save_dir)
    head, _, counter = (save_dir / ".claim.1").read_bytes().partition(b"\n")
    taken = {**json.loads(head), "host": "gpu7", "nonce": "0123456789abcdef"}
    (save_dir / ".claim.2").write_bytes(json.dumps(taken).encode() + b"\n" + counter)
    (save_dir / ".claim.1").unlink()
    process.send_signal(signal.SIGCONT)
    first = finish([process])
    return {
        "pid": process.pid,
        "save_dir": save_dir,
        "second": second,
        "first": first,
        "before": before,
        "after": after,
        "end": listing(save_dir),
    }


def listing(folder: Path) -> dict[str, float]:
    return {str(p.relative_to(folder)): os.stat(p).st_mtime for p in sorted(folder.rglob("*"))}


def test_a_second_run_in_a_save_dir_is_refused_and_touches_nothing(told):
    second: Outcome = told["second"]
    assert second.status == 2
    (error,) = second.errors
    assert re.search(rf"--save_dir run is being written by pretrain.py \(process {told['pid']} on ", error)
    assert "give another --save_dir" in error and "Traceback" not in second.stderr
    assert told["before"] == told["after"]


def test_a_stopped_run_that_was_overtaken_publishes_nothing_when_it_wakes(told):
    first: Outcome = told["first"]
    assert first.status == 2, first.stderr
    assert re.search(r"error: could not write .*run is no longer this run's: .*gpu7.* took it over", first.stderr)
    assert "Traceback" not in first.stderr
    steps = {name.split("/")[0] for name in told["before"] if name.startswith("step_")}
    assert {name.split("/")[0] for name in told["end"] if "step_" in name} == steps
    assert ".claim.2" in told["end"], "another's claim was removed"
    assert read_metrics(told["save_dir"] / "metrics.jsonl")
