"""Training that is killed again and again sees each sequence once: the short form of benchmarks/data/kills.py."""

import json
import subprocess
import sys

import pytest

from tests.cli.entries import ROOT


@pytest.mark.slow
@pytest.mark.matrix  # starts four programs; test_resume.py kills one run, here it is any number
def test_training_killed_at_random_loses_no_sequence_and_sees_none_twice():
    command = [sys.executable, "benchmarks/data/kills.py", "--kills", "2", "--documents", "70", "--num_workers", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["kills"] == 2 and counts["sequences"] > 100
