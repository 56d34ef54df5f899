"""benchmark.py prints the line that Colossal-AI's users know, and figures that agree with it."""

from __future__ import annotations

import re

import pytest

from tests.cli.entries import MODEL_SIZE, Command

NUMBER = r"([\d,]+\.\d+)"
RESULT = re.compile(rf"max memory usage:  {NUMBER} MB, throughput:  {NUMBER} samples/s, TFLOPS/GPU:  {NUMBER}")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Two processes of which each takes half of the batches: 5 steps, 2 of them not measured, as by default."""
    folder = tmp_path_factory.mktemp("benchmark")
    flags = [*MODEL_SIZE, "-p", "zero2", "--mixed_precision", "fp32", "-l", "64", "-b", "2"]
    outcome = Command("benchmark", flags, folder, "torchrun", processes=2).run()
    assert not list(folder.iterdir()), "a benchmark writes nothing"
    return outcome


def test_the_result_is_the_documented_line_printed_once(outcome):
    assert outcome.status == 0, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert RESULT.fullmatch(outcome.stdout.splitlines()[0])
    assert len(RESULT.findall(outcome.stdout)) == 1


def test_five_steps_are_run_of_which_two_are_ignored(outcome):
    steps = re.findall(r"^step (\d+): .*? s, loss [\d.]+( \(ignored\))?$", outcome.stderr, re.MULTILINE)
    assert [(int(number), bool(ignored)) for number, ignored in steps] == [
        (1, True),
        (2, True),
        (3, False),
        (4, False),
        (5, False),
    ]
    assert "median of 3" in outcome.stdout


def test_tokens_and_utilisation_agree_with_the_line(outcome):
    memory, samples, _ = (float(text.replace(",", "")) for text in RESULT.search(outcome.stdout).groups())
    tokens = float(re.search(rf"{NUMBER} tokens/s/GPU", outcome.stdout)[1].replace(",", ""))
    step = float(re.search(rf"step {NUMBER} s", outcome.stdout)[1])
    assert memory > 50
    assert tokens == pytest.approx(samples * 64 / 2, abs=1)
    assert samples == pytest.approx(2 * 2 / step, rel=0.2), "both ranks' batches, in the time of a step"
    assert re.search(
        rf"MFU {NUMBER}%, HFU {NUMBER}% of {NUMBER} TFLOPS \(cpu: measured float32 matmul\)", outcome.stdout
    )
