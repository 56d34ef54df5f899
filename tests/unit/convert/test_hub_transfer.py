"""A model from the hub and one put there, by the hub's own client against a hub on this machine."""

from __future__ import annotations

import os
import subprocess
import sys

import torch
from conversions import tiny_model
from safetensors.torch import load_file

from tests.forks import ROOT
from tests.hub_server import TOKEN, Hub, Repository, serving


def convert(hub: Hub, folder, *flags) -> subprocess.CompletedProcess:
    """convert.py in a process of its own: which hub there is, is read when its client is imported."""
    env = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    env |= hub.environment(folder / "home", TOKEN)
    command = [sys.executable, str(ROOT / "convert.py"), *map(str, flags)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240)


def test_a_closed_repository_is_fetched_with_a_token_gone_on_with_and_uploaded_again(tmp_path):
    # The client keeps what it has by tens of megabytes.
    model = tiny_model("rmsnorm", hidden_size=256, vocab_size=12000)
    model.save_pretrained(tmp_path / "there")
    # It answers nobody without the token.
    there = {("models", "someone/closed"): Repository(tmp_path / "there", "closed")}
    with serving(Hub(there, faults=[("GET /lfs/.*model.safetensors", "cut")])) as hub:
        flags = ["-i", "someone/closed", "-o", "result", "--push_to_hub", "someone/again"]
        outcome = convert(hub, tmp_path, *flags)
        assert outcome.returncode == 0, outcome.stderr
    (name, begin), *_ = hub.ranges
    assert name == "model.safetensors" and begin > 0, "the rest of the file alone was asked for"
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("there", "result"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert hub.made["visibility"] == "private" and hub.made["name"] == "again"
    files = {path.name: path.read_bytes() for path in (tmp_path / "result").iterdir()}
    assert hub.uploaded == files and "README.md" in files
    assert "uploaded to" in outcome.stdout
