"""benchmarks/data/ measure what they say, on small data: sides that must agree do, and a dated file is left."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.cli.entries import LIMIT_SECONDS, ROOT


def run(script, tmp_path, *flags):
    command = [sys.executable, str(ROOT / "benchmarks" / "data" / script), "--work", str(tmp_path / "work")]
    command += ["--results", str(tmp_path / "results"), *flags]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    assert ended.returncode == 0, ended.stderr
    (file,) = (tmp_path / "results").iterdir()
    assert ended.stdout.splitlines()[-1] == str(file)
    return json.loads(file.read_text(encoding="utf-8"))


def test_start_up_reads_the_last_token_of_many_shards(tmp_path):
    report = run("startup.py", tmp_path, "--tokens", "1000000000", "--rounds", "1")
    assert [row["tokens"] for row in report["rows"]] == [10**9, 10**9]
    assert report["rows"][0]["documents"] == 500_001
    assert all(row["peak_resident_mb"] < 200 and row["disk_mb"] < 10 for row in report["rows"])


@pytest.mark.slow
def test_shards_and_the_loop_hand_out_the_same_tokens(tmp_path):
    report = run("reading.py", tmp_path, "--megabytes", "2", "--rounds", "1", "--vocab_size", "512")
    assert len(report["rows"]) == 3 and len({row["sha256"] for row in report["rows"]}) == 2  # one side is shuffled
    assert report["summary"]["shards, in order / arrow loop (goal 50)"] > 1
