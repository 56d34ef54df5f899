"""benchmarks/steps.py, checkpoint.py and the rehearsal of the GPU check run and say what they must."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.cli.entries import LIMIT_SECONDS, MODEL_SIZE, ROOT


def run(command: list[str], results: Path) -> tuple[subprocess.CompletedProcess, dict]:
    """A program that leaves one report."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "VENV": str(Path(sys.executable).parents[1])}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, env=environment, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    (file,) = results.iterdir()
    return ended, json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "peers",
    [
        ["bare"],
        pytest.param(["colossalai"], marks=pytest.mark.matrix),
        pytest.param(
            ["huggingface"],
            marks=[pytest.mark.matrix, pytest.mark.skipif(not find_spec("accelerate"), reason="accelerate is missing")],
        ),
    ],
    ids=" ".join,
)
def test_loops_train_the_same_and_take_turns(tmp_path, peers):
    flags = [
        "--peers",
        *peers,
        "--pairs",
        "2",
        "--launches",
        "1",
        "--warmup",
        "2",
        "--batch_size",
        "1",
        "--max_length",
        "16",
    ]
    command = [sys.executable, "benchmarks/steps.py", "--config", "15m", *flags, "--results", str(tmp_path)]
    ended, report = run(command, tmp_path)
    summary, rows = report["summary"], report["rows"]
    assert float(summary["largest relative distance of the first losses"]) < 1e-5
    for peer in peers:
        turns = [(row["pair"], row["side"]) for row in rows if row["against"] == peer]
        assert turns == [(0, "ours"), (0, peer), (1, peer), (1, "ours")]
        assert summary[f"ours / {peer}, tokens/s"]["pairs"] == 2
        assert f"ours / {peer}, tokens/s: " in ended.stdout
    assert all(row["seconds"] > 0 and row["loss"] > 9 and row["memory_mb"] > 100 for row in rows)
    assert report["ours_allocator"]["MALLOC_MMAP_THRESHOLD_"] == "1073741824"


@pytest.mark.matrix  # starts four programs
def test_three_ways_of_saving_write_the_same_tensors(tmp_path):
    command = [sys.executable, "benchmarks/checkpoint.py", "--config", "15m", "--rounds", "1"]
    _, report = run([*command, "--results", str(tmp_path), "--", *MODEL_SIZE], tmp_path)
    assert {row["side"] for row in report["rows"]} == {"ours", "torch.save", "distributed"}
    tensors = report["summary"]["tensors, MB"] * 2**20
    assert all(tensors <= row["bytes"] < 1.1 * tensors for row in report["rows"])


def test_the_gpu_check_can_be_rehearsed_on_a_cpu(tmp_path):
    """One part of it; the others compile, which takes a CPU minutes."""
    command = ["env", "PARTS=dyt-bf16-eager", "bash", "scripts/gpu_check.sh", "--rehearse", str(tmp_path)]
    ended, report = run(command, tmp_path)
    assert "fsdp bf16 on 1 cpu process" in report["summary"]["run"] and "== dyt-bf16-eager: " in ended.stdout
    terms = report["rows"][0]["terms_seconds"]
    assert all(terms[term] > 0 for term in ("matmul", "attention", "optimizer", "loss"))
    assert "== tests" not in ended.stdout
