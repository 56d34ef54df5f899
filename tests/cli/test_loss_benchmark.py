"""benchmarks/loss.py measures both sides in one run; and with it, what the loss promises of a large vocabulary."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.cli.entries import LIMIT_SECONDS, ROOT


def test_a_vocabulary_of_128k_needs_at_most_two_fifths_of_the_memory_of_whole_logits(tmp_path):
    sizes = {"vocabulary": 128256, "tokens": 256, "hidden": 32, "repeat": 1, "threads": 1}
    flags = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, str(ROOT / "benchmarks" / "loss.py"), "--device", "cpu", "--precision", "fp32", *flags]
    ended = subprocess.run(
        [*command, "--results", str(tmp_path)], capture_output=True, text=True, timeout=LIMIT_SECONDS
    )
    assert ended.returncode == 0, ended.stderr
    (file,) = tmp_path.iterdir()
    assert str(file) == ended.stdout.splitlines()[-1]
    report = json.loads(file.read_text(encoding="utf-8"))
    ours, whole = report["rows"]
    assert (ours["side"], whole["side"]) == ("ours", "materialised")
    # Else memory was measured wrongly: logits, their log-softmax and its gradient are as large.
    assert whole["memory_mb"] > 2 * 4 * 256 * 128256 / 2**20
    assert report["summary"]["ours / materialised, memory"] == ours["memory_mb"] / whole["memory_mb"] <= 0.4
    assert abs(ours["loss"] - whole["loss"]) <= 1e-6 * whole["loss"]
    assert max(ours["gradient_distance"]) < 1e-6
    assert len(ours["seconds"]) == len(whole["seconds"]) == 1
    assert "ours / materialised, memory: 0." in ended.stdout
