"""Several ranks of one run as a user starts them: they agree before they train, and end together with one message."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from llama_dyt.training.trackers.jsonl import read_metrics
from tests.cli.conftest import NUM_STEPS, write_lines
from tests.cli.entries import Command, Outcome, finish, wait_until
from tests.forks import ROOT


@pytest.fixture
def disks(tmp_path) -> list[Path]:
    """A working directory for each of two ranks, as on disks of their own."""
    folders = [tmp_path / "node0", tmp_path / "node1"]
    for folder in folders:
        folder.mkdir()
    return folders


def errors_of(outcome: Outcome) -> list[str]:
    assert "Traceback" not in outcome.stderr, outcome.stderr
    return [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]


def test_ranks_that_resolve_different_things_do_not_start_and_one_error_names_all(corpus, pretrained, disks):
    """The first rank finds a checkpoint, other text and another learning rate under the names that both are given."""
    shutil.copytree(pretrained.save_dir, disks[0] / "run")
    lines = corpus.train.read_text(encoding="utf-8").splitlines(keepends=True)
    for folder, rate, count in zip(disks, ("1e-2", "2e-2"), (len(lines), len(lines) - 1), strict=True):
        (folder / "run.yaml").write_text(f"lr: {rate}\n", encoding="utf-8")
        (folder / "train.jsonl").write_text("".join(lines[:count]), encoding="utf-8")
    before = sorted(disks[0].rglob("*"))
    flags = corpus.pretrain_flags(
        dataset="train.jsonl",
        save_dir="run",
        load="auto",
        lr=None,
        batch_size=1,  # two ranks make the checkpoint's batch of it
        max_steps=2 * NUM_STEPS,
        config_file="run.yaml",
    )
    outcome = Command("pretrain", flags, disks[0], "srun", processes=2, folders=disks).run()
    assert outcome.status == 2
    assert len(errors_of(outcome)) == 1, outcome.stderr
    checkpoint, rate, data, remedy = outcome.errors
    assert "ranks disagree on the checkpoint: rank 0: step 12, marker" in checkpoint
    assert f"rank 1: none, a start at step 0 (--save_dir {disks[1]}/run)" in checkpoint
    assert rate == "ranks disagree on --lr: rank 0: 0.01; rank 1: 0.02"
    assert f"{disks[0]}/train.jsonl" in data and f"{disks[1]}/train.jsonl" in data
    assert "all ranks must read the same files" in remedy
    assert sorted(disks[0].rglob("*")) == before, "something was written"
    assert sorted(path.name for path in disks[1].rglob("*")) == ["run.yaml", "train.jsonl"]


def test_data_that_one_rank_alone_cannot_read_ends_both_with_one_message(corpus, disks):
    """The files are of one size, so only reading them shows the difference, in the middle of training."""
    lines = corpus.train.read_text(encoding="utf-8").splitlines(keepends=True)
    for folder, second in zip(disks, (lines[1], "{" + lines[1][1:].replace('"', " ")), strict=True):
        (folder / "train.jsonl").write_text("".join([lines[0], second, *lines[2:]]), encoding="utf-8")
    flags = corpus.pretrain_flags(dataset="train.jsonl", save_dir="run", num_workers=0)
    outcome = Command("pretrain", flags, disks[0], "srun", processes=2, folders=disks).run()
    assert outcome.status == 2
    (message,) = errors_of(outcome)
    assert "train.jsonl, line 2: is not valid JSON" in message
    assert "  (rank 1 on " in outcome.stderr


def test_a_log_that_rank_0_cannot_write_ends_both_ranks_with_one_message(corpus, tmp_path):
    (tmp_path / "run" / "config.yaml").mkdir(parents=True)
    flags = corpus.pretrain_flags(save_dir="run")
    outcome = Command("pretrain", flags, tmp_path, "srun", processes=2).run()
    assert outcome.status == 2
    (message,) = errors_of(outcome)
    assert message.startswith("error: could not write metrics in run (Is a directory)")


def test_what_is_wrong_before_ranks_meet_is_told_once(corpus, tmp_path):
    flags = corpus.pretrain_flags(save_dir="run", dataset="none.jsonl")
    outcome = Command("pretrain", flags, tmp_path, "srun", processes=2).run()
    assert outcome.status == 2
    (message,) = outcome.stderr.splitlines()
    assert message.startswith("error: --dataset none.jsonl: no such file")


def test_what_is_wrong_on_one_rank_before_they_meet_ends_the_other(corpus, disks):
    write_lines(disks[0] / "train.jsonl", [{"text": "only the first rank has this"}] * 200)
    flags = corpus.pretrain_flags(save_dir="run", dataset="train.jsonl")
    outcome = Command("pretrain", flags, disks[0], "srun", processes=2, folders=disks).run()
    assert outcome.status == 2
    (message,) = errors_of(outcome)
    assert message.startswith("error: --dataset train.jsonl: no such file")
    assert "  (rank 1 on " in outcome.stderr
    assert not (disks[0] / "run").exists()


@pytest.mark.parametrize("killed", (0, 1))
def test_a_rank_that_is_killed_ends_the_other_which_says_so(corpus, tmp_path, killed):
    flags = corpus.pretrain_flags(save_dir="run", max_steps=100_000, num_epochs=1000)
    processes = Command("pretrain", flags, tmp_path, "srun", processes=2).start()
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: len(read_metrics(metrics)) > 1, processes[0])
    processes[killed].send_signal(signal.SIGKILL)
    outcome = finish(processes)
    assert processes[killed].returncode == -signal.SIGKILL and processes[1 - killed].returncode == 1
    (message,) = errors_of(outcome)
    if killed:
        assert message.startswith(f"error: rank 1 (process {processes[1].pid} on ")
    else:  # and with it what the ranks talk over
        assert message.startswith("error: rank 1 on ") and "lost localhost:" in message
    report = outcome.stderr.partition("where each rank stood (all of it: run/failures/")[2].splitlines()
    assert report[1].startswith(f"  rank {killed}: gone; step ") and report[2].startswith(f"  rank {1 - killed}: step ")


def test_a_rank_whose_others_never_start_ends_after_timeout_and_says_who_is_missing(corpus, tmp_path):
    flags = [*corpus.pretrain_flags(save_dir="run"), "--timeout", "2"]
    first, second = (
        Command("pretrain", flags, tmp_path, "srun", processes=2, only_rank=rank).start() for rank in (0, 1)
    )
    waited, tried = finish(first), finish(second)
    assert waited.status == tried.status == 2
    (message,) = errors_of(waited)
    assert message.startswith("error: waited 2 s (--timeout) for rank 1 of 2 at localhost:")
    (message,) = errors_of(tried)
    assert "waited 2 s (--timeout) for rank 0 at localhost:" in message and "onnection refused" in message


FAILS_AND_IS_SLOW_TO_RELEASE = """
import pathlib, time
from llama_dyt.core.store import STORES
from llama_dyt.training.callbacks.callback import CALLBACKS, Callback
from tests.cli.slow_store import Held

class Slow(Held):
    name = "slow"

    def delete(self, address):
        if "/.claim." in address and pathlib.Path("failed").exists():
            pathlib.Path("releasing").touch()
            time.sleep(2)
        super().delete(address)

    @staticmethod
    def _path(address):
        return Held._path(address.replace("slow://", "held://"))

    def list(self, address):
        return {name.replace("held://", "slow://"): size for name, size in super().list(address).items()}

class Fails(Callback):
    name = "fails"

    def after_step(self, trainer, outcome):
        if outcome.step == 2:
            pathlib.Path("failed").touch()
            raise RuntimeError("made to fail")

STORES.register(Slow())
CALLBACKS.register(Fails)
"""


def test_a_rank_that_fails_says_why_whatever_its_launcher_asks_of_it_meanwhile(corpus, tmp_path, monkeypatch):
    (tmp_path / "fails.py").write_text(FAILS_AND_IS_SLOW_TO_RELEASE)
    monkeypatch.setenv("HELD", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    flags = corpus.pretrain_flags(save_dir="slow://run", batch_size=1, callback="fails", **{"import": "fails"})
    processes = Command("pretrain", flags, tmp_path, "srun", processes=2).start()
    wait_until((tmp_path / "releasing").exists, processes[0])
    processes[0].send_signal(signal.SIGTERM)
    outcome = finish(processes)
    assert "--callback fails failed in after_step at step 2: RuntimeError: made to fail" in outcome.stderr, (
        outcome.stderr
    )
    assert "SIGTERM" not in outcome.stderr and {process.returncode for process in processes} == {2}
