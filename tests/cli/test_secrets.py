"""Secrets planted in the environment, in flags and in what fails are in nothing that a run writes or prints."""

from __future__ import annotations

import stat
from pathlib import Path

from tests.cli.conftest import Corpus, corpus  # noqa: F401
from tests.cli.entries import Command

CANARY = "canary-5f2c-of-the-night"
IN_ENVIRONMENT = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "MY_PASSWORD")
LEAKS = """
import os
from llama_dyt.training.callbacks.callback import CALLBACKS, Callback
from llama_dyt.training.trackers.tracker import TRACKERS, Tracker

class Leaky(Tracker):
    name = "leaky"
    def log(self, record):
        raise ConnectionError(f"https://me:{os.environ['MY_PASSWORD']}@host refused {os.environ['HF_TOKEN']}")

class Talking(Callback):
    name = "talking"
    def after_step(self, trainer, outcome):
        trainer.say(f"token {os.environ['HF_TOKEN']}")
        print("plainly", os.environ["AWS_SECRET_ACCESS_KEY"])
        if outcome.step == 3:
            raise RuntimeError(f"not with {os.environ['WANDB_API_KEY']}")

TRACKERS.register(Leaky)
CALLBACKS.register(Talking)
"""


def leaks(folder: Path) -> list[str]:
    """Files with a canary in them, or that others than their owner may write."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "mine.py":
            if CANARY.encode() in path.read_bytes():
                found.append(f"{path} has it")
            if stat.S_IMODE(path.stat().st_mode) & 0o022:
                found.append(f"{path} can be written by others")
    return found


def test_a_run_that_saves_and_then_fails(corpus: Corpus, tmp_path, monkeypatch):  # noqa: F811
    for number, name in enumerate(IN_ENVIRONMENT):
        monkeypatch.setenv(name, f"{CANARY}-{number}")
    (tmp_path / "mine.py").write_text(LEAKS)
    flags = corpus.pretrain_flags(**{"import": "mine"}, plugin="ddp", save_dir="run", save_interval=2)
    flags += ["--tracker", "leaky", "--callback", "talking"]
    flags += ["--tracker_server", f"https://me:{CANARY}@host:1/x?token={CANARY}", "--tensorboard_dir", "tb"]
    flags += ["--tracker_project_name", f"{CANARY}-0"]
    outcome = Command("pretrain", flags, tmp_path).run()
    assert outcome.status != 0
    assert CANARY not in outcome.stdout + outcome.stderr
    assert "token ***" in outcome.stderr and "plainly ***" in outcome.stdout and "not with ***" in outcome.stderr
    assert "ConnectionError: https://***@host refused ***" in outcome.stderr
    assert leaks(tmp_path) == []
    assert "https://***@host:1/x?token=***" in (tmp_path / "run/config.yaml").read_text()
    assert "https://***@host:1" in (tmp_path / "run/report.html").read_text()
    assert (tmp_path / "run/step_00000002/COMPLETE").is_file()
    assert "not with ***" in (tmp_path / "run/events.jsonl").read_text()


def test_a_command_line_that_cannot_be(corpus: Corpus, tmp_path):  # noqa: F811
    address = f"s4://key:{CANARY}@bucket/data.jsonl"
    flags = corpus.pretrain_flags(dataset=address, save_dir=f"s5://key:{CANARY}@bucket/run")
    outcome = Command("pretrain", flags, tmp_path).run()
    assert outcome.status == 2 and "***@bucket" in outcome.stderr and CANARY not in outcome.stdout + outcome.stderr
    assert leaks(tmp_path) == []
