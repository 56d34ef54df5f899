"""benchmarks/memory.py measures plugins in processes of their own, and leaves a table and a dated file."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from llama_dyt.models import build_config, count_parameters
from tests.cli.entries import LIMIT_SECONDS, MODEL_SIZE, ROOT

PROGRAM = [sys.executable, str(ROOT / "benchmarks" / "memory.py")]


@pytest.mark.matrix  # starts three programs; tests/distributed/test_memory.py has the figures themselves
def test_optimizer_states_of_two_processes_are_half(tmp_path):
    flags = ["--plugins", "zero2", "--processes", "1", "2", "--mixed_precision", "bf16"]
    flags += ["--config", "15m", "--max_length", "8"]
    command = [*PROGRAM, *flags, "--results", str(tmp_path), "--", *MODEL_SIZE]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    assert ended.returncode == 0, ended.stderr
    (file,) = tmp_path.iterdir()
    report = json.loads(file.read_text(encoding="utf-8"))
    assert str(file) == ended.stdout.splitlines()[-1]
    one, two = report["rows"]
    config = build_config(
        "15m",
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
    )
    assert one["moments_bytes"] == 8 * count_parameters(config)
    assert abs(two["optimizer_state_bytes"] / one["optimizer_state_bytes"] - 0.5) < 0.01
    assert len(two["ranks"]) == 2
    assert two["peak_mb"] > two["before_mb"] > 0
    assert {"python", "torch", "transformers", "colossalai"} == set(report["versions"])
    assert "| zero2 | bf16 | 2 |" in ended.stdout
    assert "| 1/2.00 |" in ended.stdout


def test_a_plugin_that_is_not_there_is_refused_before_anything_starts(tmp_path):
    ended = subprocess.run(
        [*PROGRAM, "--plugins", "zero9", "--results", str(tmp_path / "results")], capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert "no plugin 'zero9'" in ended.stderr
    assert not (tmp_path / "results").exists()
