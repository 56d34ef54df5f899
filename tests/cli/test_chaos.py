"""Runs that are killed, stopped and ended at any time come to what an undisturbed one comes to: benchmarks/chaos.py."""

import json
import subprocess
import sys

import pytest

from tests.cli.entries import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["--plugin", "zero2", "--storage", "disk", "--processes", "2", "--disturbances", "1"], id="short"),
        pytest.param(["--saves", "asynchronous", "--disturbances", "5"], id="asynchronous", marks=pytest.mark.matrix),
        pytest.param(["--snapshots", "2", "--disturbances", "5"], id="snapshots", marks=pytest.mark.matrix),
        pytest.param(["--storage", "tmpfs", "--disturbances", "5"], id="small disk", marks=pytest.mark.matrix),
        pytest.param(["--storage", "s3", "--disturbances", "5"], id="object store", marks=pytest.mark.matrix),
    ],
)
def test_what_is_disturbed_comes_to_the_same_bits(words):
    command = [sys.executable, "benchmarks/chaos.py", "--minutes", "0", "--seed", "3", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["rounds"] == 1 and figures["steps_compared"] > 0
    assert not figures["tokens_lost"] and not figures["hangs"] and not figures["left_behind"]
