"""How soon an entry answers: what it says at once is said before torch is imported, and costs the processor little."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.cli.entries import ROOT, Command

HEAVY = {"torch", "transformers", "colossalai"}


def start(entry: str, *flags: str, folder) -> tuple[int, str, str, float]:
    """(status, stdout, stderr without the list of imports, seconds of processor) of an interpreter of its own.

    Processor seconds, which other programs on the machine make little difference to.
    """
    command = [sys.executable, "-X", "importtime", str(ROOT / f"{entry}.py"), *flags]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process.stdout, process.stderr:
        stdout, lines = process.stdout.read(), process.stderr.read().splitlines()
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert not HEAVY & imported
    told = "\n".join(line for line in lines if not line.startswith("import time:"))
    return process.returncode, stdout, told, usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("entry", ["pretrain", "finetune", "benchmark", "prepare_data", "generate"])
def test_help_is_there_within_a_second(entry, tmp_path):
    status, stdout, stderr, seconds = start(entry, "--help", folder=tmp_path)
    assert (status, stderr) == (0, "") and f"{entry}.py" in stdout
    assert seconds < 1


@pytest.mark.parametrize(
    ("entry", "flags", "expected"),
    [
        ("pretrain", ["--typo", "-d", "no.jsonl"], ["unknown flag '--typo'", "--dataset no.jsonl: no such file"]),
        ("pretrain", ["-p", "zero2", "-x", "fp32", "-d", "no.jsonl"], ["--dataset no.jsonl: no such file"]),
        ("pretrain", ["-d", "sample", "-p", "gemini", "-x", "fp32"], ["--mixed_precision fp32: --plugin gemini has"]),
        ("benchmark", ["--lr", "x"], ["--lr: 'x' is not a number"]),
    ],
)
def test_wrong_flags_are_answered_together_before_torch_is_imported(entry, flags, expected, tmp_path):
    status, stdout, stderr, seconds = start(entry, *flags, folder=tmp_path)
    assert (status, stdout) == (2, "")
    lines = stderr.removeprefix("error: ").splitlines()
    assert len(lines) == len(expected) and all(map(str.startswith, lines, expected)), stderr
    assert seconds < 3
    assert not list(tmp_path.iterdir())


def test_what_only_a_look_at_weights_can_tell_is_told_with_the_rest(tmp_path):
    """Which takes longer: a mistake in a flag does not hide one in a checkpoint."""
    flags = ["--typo", "-d", "no.jsonl", "-p", "zero2", "-x", "fp32", "-o", "run", "--load", "no_such"]
    outcome = Command("pretrain", flags, tmp_path).run()
    assert outcome.status == 2
    typo, *others = outcome.stderr.splitlines()
    dataset, load = sorted(others)
    assert "unknown flag '--typo'" in typo and dataset.startswith("--dataset no.jsonl")
    assert load.startswith("--load no_such: no such folder")
